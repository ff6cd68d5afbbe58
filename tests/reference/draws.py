"""The library's random draws, one tensor at a time: parameter p of draw j of a step."""

import torch

from flatmin.streams import Stream


def noise(law, like, *, seed, step, draw):
    stream = Stream(seed, (step, draw))
    return [law.sample_(torch.empty_like(t), stream.generator(p, t.device)) for p, t in enumerate(like)]
