"""What the integrations share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from flatmin.curvature.results import TraceEstimate
from flatmin.errors import ArgumentError
from flatmin.optim.shell import Perturbed
from flatmin.perturb import Probe


def method_within(optimizer: object) -> Perturbed | None:
    """Return the method in the wrappers that frameworks put around an optimizer (``.optimizer``), None without one.

    Example:
        >>> import torch, flatmin as fm
        >>> method_within(torch.optim.SGD([torch.ones(1)])) is None
        True
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer if isinstance(optimizer, Perturbed) else None


def require_mini_batch(probe: Probe, method: Perturbed) -> Probe:
    """Return ``probe`` unless it asks for the gradient over all data, which no framework's step has at hand."""
    if probe.full_batch:
        name = type(method).__name__
        raise ArgumentError(
            f"{name} asks for the gradient over all data at one of its points (exact=True), but a framework's training "
            f"step has one batch. Leave exact=False, or run {name} in a loop of your own."
        )
    return probe


def loss_of_step(losses: Sequence[Tensor], probes: Sequence[Probe]) -> Tensor:
    """Return the loss that a step reports, as ``step(closure)`` does: the average over the points of a noise method.

    Args:
        losses: The loss at each point.
        probes: The points.
    """
    weights = [probe.weight for probe in probes if probe.weight is not None]
    if len(weights) < len(losses):
        return losses[0]
    return sum((loss * weight for loss, weight in zip(losses, weights, strict=True)), start=losses[0] * 0)


def trace_entries(estimate: TraceEstimate | None) -> dict[str, float]:
    """Return the live trace as entries of a log; none without an estimate. Reading it has waited for the device.

    Example:
        >>> trace_entries(TraceEstimate(value=2.0, stderr=0.5, num_matvecs=3))
        {'hessian_trace': 2.0, 'hessian_trace_stderr': 0.5}
    """
    if estimate is None:
        return {}
    error = {} if math.isnan(estimate.stderr) else {"hessian_trace_stderr": estimate.stderr}  # one sample has none
    return {"hessian_trace": estimate.value, **error}


def missing(package: str, install: str) -> ModuleNotFoundError:
    """Return the error that says how to install ``package``."""
    return ModuleNotFoundError(
        f"{package} is not installed, and flatmin.integrations.{package} works in its loop. Install it: {install}",
        name=package,
    )
