"""Who calls a step, and how: what to refuse that would not fail but train wrongly."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from flatmin.distributed import local
from flatmin.errors import ClosureError, ProbeError
from flatmin.vectors import dense


class Accumulated(NamedTuple):
    """A witness of the gradients that ``.grad`` holds: one of them, as it was."""

    parameter: weakref.ref[Tensor]
    gradient: weakref.ref[Tensor]
    writes: int

    @classmethod
    def of(cls, parameters: Mapping[int, Tensor]) -> Self | None:
        """Return the witness, None if there are no gradients."""
        for parameter in parameters.values():
            if parameter.grad is not None:
                return cls(weakref.ref(parameter), weakref.ref(parameter.grad), parameter.grad._version)
        return None

    def is_still(self, other: Self | None) -> bool:
        """Tell whether ``other`` is the witness of the same gradients, not written to since."""
        return other is not None and self.gradient() is other.gradient() and self.writes == other.writes

    def was_cleared(self) -> bool:
        """Tell whether the gradient is zero, as ``zero_grad(set_to_none=False)`` leaves it. Waits for the device."""
        gradient = self.gradient()
        return gradient is None or not bool(local(dense(gradient)).any())


@contextmanager
def require_cleared(earlier: Accumulated | None) -> Iterator[None]:
    """Raise if gradients from before a closure are still there after its first call.

    torch's contract has the closure clear them. One that does not, called over gradients that no step has used yet,
    stands for the last of several micro-batches: Lightning, under accumulation, calls it so, and the earlier ones
    would be lost. To tell, NaN is laid in the place of one gradient. That happens only where gradients were found that
    no step has used, so an ordinary loop pays nothing.

    Args:
        earlier: The witness of such gradients, if there are any.

    Raises:
        ClosureError: They are still there, or a ``GradScaler`` calls with a closure.
    """
    _require_no_accelerate()
    parameter = None if earlier is None else earlier.parameter()
    if parameter is None:
        yield
        return
    if is_called_by_scaler():
        raise ClosureError(
            "GradScaler.step(opt, closure) would have the closure's gradients, which are scaled, taken as they are. "
            "Write `for probe in opt.probes(scaler=scaler):` with the backward pass inside, then scaler.step(opt)."
        )
    mark = torch.full_like(parameter, torch.nan, requires_grad=False)
    parameter.grad = mark
    yield
    if parameter.grad is mark and bool(torch.isnan(mark).any()):
        parameter.grad = None
        raise ClosureError(
            "Gradients had been accumulated before step(closure), and the closure does not clear them: it stands for "
            "the last micro-batch alone, and the others would be lost. Likely cause: gradient accumulation in a "
            "framework that passes a closure, or a backward pass before the call. Use `for probe in opt.probes():`, or "
            "flatmin.attach(model, optimizer, ...), or have the closure call opt.zero_grad(). Scripts for the two-call "
            "SAM class run with flatmin.compat.SAM. The weights are as they were."
        )


def _require_no_accelerate() -> None:
    """Raise under gradient accumulation of Accelerate, which passes on the closure of the last micro-batch alone."""
    module = sys.modules.get("accelerate.state")
    state = None if module is None or not module.GradientState._shared_state else module.GradientState()
    if state is not None and state.num_steps > 1:
        raise ClosureError(
            f"step(closure) under accelerator.accumulate with {state.num_steps} micro-batches: Accelerate calls it for "
            "the last of them alone, and the others would be lost. Use `for probe in opt.probes():` inside each "
            "micro-batch, or flatmin.attach(model, optimizer, ...)."
        )


def warn_of_plain_step(name: str, groups: Iterable[Mapping[str, Any]]) -> bool:
    """Warn of a loop that never evaluates a method, but for steps of length zero, which only set up; tell whether.

    Args:
        name: The method.
        groups: The parameter groups that are about to be stepped.
    """
    if is_idle(groups):
        return False
    warnings.warn(
        f"{name}.step() came without a closure and without a loop over probes before it, so it was a plain step of the "
        "base optimizer: nothing was perturbed. Write opt.step(closure), or `for probe in opt.probes(): with probe: "
        "loss(...).backward()` before opt.step(); loops that cannot be edited take flatmin.attach.",
        stacklevel=5,
    )
    return True


def is_idle(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether a step of ``groups`` moves nothing: every learning rate is 0. Waits for one that is a tensor."""
    rates = [group["lr"] for group in groups if "lr" in group]
    return bool(rates) and all(float(rate) == 0 for rate in rates)


def require_no_scaler(name: str) -> None:
    """Raise if a ``GradScaler`` is stepping a method that has not been told of it."""
    if is_called_by_scaler():
        raise ProbeError(
            f"A GradScaler steps this optimizer, but the loop over probes was not told of it, and {name} looks at the "
            "size of gradients: it has seen them scaled. Write `for probe in opt.probes(scaler=scaler):`. The weights "
            "are as they were."
        )


def is_called_by_scaler() -> bool:
    """Tell whether a ``GradScaler`` is among the callers."""
    frame = sys._getframe(1)
    for _ in range(16):  # hooks, schedulers and profilers wrap a step a few times
        if frame is None or frame.f_globals.get("__name__") == "torch.amp.grad_scaler":
            return frame is not None
        frame = frame.f_back
    return False
