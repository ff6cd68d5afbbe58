"""The library's random draws, one tensor at a time: parameter p of draw j of a step."""

import torch

from flatmin.streams import Stream


def sign(*, seed, step):
    return Stream(seed, (step,)).sign()


def noise(law, like, *, seed, step, draw=None):
    stream = Stream(seed, (step,) if draw is None else (step, draw))
    return [law.sample_(torch.empty_like(t), stream.generator(p, t.device)) for p, t in enumerate(like)]
