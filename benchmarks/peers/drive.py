"""How each optimizer steps: one function for each way in which one of them is documented, or can be made, to step.

``step(opt, closure)`` is one step of the documented loop, from a closure that clears the gradients, computes the loss,
calls backward and returns the loss. ``accumulate(opt, backwards)`` is one step from micro-batches seen one after
another: ``backward(share)`` adds the gradient of share x loss to ``.grad``. For loss scaling see :mod:`peers.scaling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from peers.problems import Closure

Backward = Callable[[float], Tensor]


# ---- step(closure) in torch's contract


def step(opt: Any, closure: Closure) -> Any:
    """``opt.step(closure)``."""
    return opt.step(closure)


# ---- torch.optim itself


def accumulate_plain(opt: Any, backwards: Sequence[Backward]) -> None:
    """Backward for every micro-batch, then a step."""
    opt.zero_grad()
    for backward in backwards:
        backward(1 / len(backwards))
    opt.step()


# ---- step(closure) after a backward pass: SAM and its kin in pytorch_optimizer


def step_after_backward(opt: Any, closure: Closure) -> Any:
    """The loop of the docstrings: ``zero_grad()``, ``closure()``, ``step(closure)``."""
    opt.zero_grad()
    closure()
    return opt.step(closure)


def accumulate_two_steps(opt: Any, backwards: Sequence[Backward]) -> None:
    """``first_step`` after the backward passes of all micro-batches, ``second_step`` after that of the last again."""
    opt.zero_grad()
    for backward in backwards:
        backward(1 / len(backwards))
    opt.first_step(zero_grad=True)
    backwards[-1](1 / len(backwards))
    opt.second_step()


def accumulate_after_backward(opt: Any, backwards: Sequence[Backward]) -> None:
    """Backward for every micro-batch; the closure knows the last one."""
    opt.zero_grad()
    for backward in backwards:
        backward(1 / len(backwards))

    opt.step(_last(opt, backwards))


def _last(opt: Any, backwards: Sequence[Backward]) -> Closure:
    """A closure that clears and knows the last micro-batch."""

    def closure() -> Tensor:
        opt.zero_grad()
        return backwards[-1](1 / len(backwards))

    return closure


# ---- GSAM: a closure of its own


def pair(closure: Closure) -> Callable[[], tuple[None, Tensor]]:
    """What ``set_closure(loss_fn, inputs, targets)`` makes: clears, runs under grad, returns outputs and loss."""

    def both() -> tuple[None, Tensor]:
        with torch.enable_grad():
            return None, closure().detach()

    return both


def step_pair(opt: Any, closure: Closure) -> Any:
    """``step`` with a closure as ``set_closure`` makes it."""
    return opt.step(pair(closure))[1]


def accumulate_pair(opt: Any, backwards: Sequence[Backward]) -> None:
    """The closure clears, as ``set_closure``'s does, and knows the last micro-batch."""
    opt.zero_grad()
    for backward in backwards[:-1]:
        backward(1 / len(backwards))
    step_pair(opt, _last(opt, backwards))


# ---- IVON: a context that samples


def step_sampled(opt: Any, closure: Closure) -> Any:
    """The loop of the README, with one sample."""
    with opt.sampled_params(train=True):
        loss = closure()
    opt.step()
    return loss


def accumulate_sampled(opt: Any, backwards: Sequence[Backward]) -> None:
    """The README's loop over samples with a micro-batch for each: their gradients are averaged."""
    for backward in backwards:
        with opt.sampled_params(train=True):
            opt.zero_grad()
            backward(1.0)
    opt.step()


# ---- flatmin: probes


def accumulate_probes(opt: Any, backwards: Sequence[Backward]) -> None:
    """The loop over probes inside each micro-batch."""
    opt.zero_grad()
    for backward in backwards:
        for probe in opt.probes():
            with probe:
                backward(1 / len(backwards))
    opt.step()
