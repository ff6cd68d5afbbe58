"""How each optimizer steps under a ``GradScaler``.

``scaled(opt, scaler, forward)`` is one step in torch's usual pattern; ``by_hand`` is one in the best pattern we know,
and calls ``clip`` where unscaled gradients stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from peers.drive import pair, step, step_after_backward
from peers.problems import Closure

Forward = Callable[[], Tensor]


def nothing() -> None:
    """Clip nothing."""


def by_hand(opt: Any, scaler: Any, forward: Forward, clip: Callable[[], None] = nothing) -> None:
    """Unscale inside the closure; nothing then skips a step that overflows."""
    step(opt, _unscaling(opt, scaler, forward, clip))


def _unscaling(opt: Any, scaler: Any, forward: Forward, clip: Callable[[], None]) -> Closure:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = forward()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        scaler.update()  # allows the next unscale_
        clip()
        return loss

    return closure


def scaled(
    opt: Any, scaler: Any, forward: Forward, adapt: Callable[[Closure], Callable[[], Any]] = lambda c: c
) -> None:
    """Backward, then ``scaler.step(opt, closure)``, which is how Accelerate passes one on."""

    def closure() -> Tensor:
        opt.zero_grad()
        loss = forward()
        scaler.scale(loss).backward()
        return loss

    closure()
    scaler.step(opt, adapt(closure))
    scaler.update()


def scaled_plain(opt: Any, scaler: Any, forward: Forward) -> None:
    """The usual pattern."""
    opt.zero_grad()
    scaler.scale(forward()).backward()
    scaler.step(opt)
    scaler.update()


def by_hand_plain(opt: Any, scaler: Any, forward: Forward, clip: Callable[[], None] = nothing) -> None:
    """The usual pattern with ``unscale_`` and clipping."""
    opt.zero_grad()
    scaler.scale(forward()).backward()
    scaler.unscale_(opt)
    clip()
    scaler.step(opt)
    scaler.update()


def by_hand_after_backward(opt: Any, scaler: Any, forward: Forward, clip: Callable[[], None] = nothing) -> None:
    """The documented loop, unscaling inside the closure."""
    step_after_backward(opt, _unscaling(opt, scaler, forward, clip))


def scaled_pair(opt: Any, scaler: Any, forward: Forward) -> None:
    """``scaler.step(opt, closure)`` with GSAM's kind of closure."""
    scaled(opt, scaler, forward, pair)


def by_hand_pair(opt: Any, scaler: Any, forward: Forward, clip: Callable[[], None] = nothing) -> None:
    """The body of ``step`` by its public methods, unscaling each gradient and clipping the combined one."""
    closure = _unscaling(opt, scaler, forward, nothing)
    closure()
    opt.perturb_weights(opt.rho_t)
    closure()
    opt.gradient_decompose(opt.alpha)
    opt.un_perturb()
    clip()
    opt.base_optimizer.step()


def scaled_sampled(opt: Any, scaler: Any, forward: Forward) -> None:
    """The usual pattern around the README's loop."""
    with opt.sampled_params(train=True):
        opt.zero_grad()
        scaler.scale(forward()).backward()
    scaler.step(opt)
    scaler.update()


def by_hand_sampled(opt: Any, scaler: Any, forward: Forward, clip: Callable[[], None] = nothing) -> None:
    """Unscale before the context ends, where the gradient is read."""
    with opt.sampled_params(train=True):
        opt.zero_grad()
        scaler.scale(forward()).backward()
        scaler.unscale_(opt)
        clip()
    scaler.step(opt)
    scaler.update()


def scaled_probes(opt: Any, scaler: Any, forward: Forward) -> None:
    """The README's loop without clipping."""
    _backward_probes(opt, scaler, forward)
    scaler.step(opt)
    scaler.update()


def by_hand_probes(opt: Any, scaler: Any, forward: Forward, clip: Callable[[], None] = nothing) -> None:
    """The README's loop with ``unscale_`` and clipping."""
    _backward_probes(opt, scaler, forward)
    scaler.unscale_(opt)
    clip()
    scaler.step(opt)
    scaler.update()


def _backward_probes(opt: Any, scaler: Any, forward: Forward) -> None:
    opt.zero_grad()
    for probe in opt.probes(scaler=scaler):
        with probe:
            scaler.scale(forward()).backward()
