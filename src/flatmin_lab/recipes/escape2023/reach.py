"""How many steps it takes to reach an (ε, √ε)-flat minimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flatmin.errors import NonFiniteError
from flatmin_lab.recipes.escape2023.rows import direction

if TYPE_CHECKING:
    from flatmin.problems import Valley
    from flatmin_lab.recipes.escape2023.scalings import Scaling

_RESOLUTION = 0.02  # a share of the steps taken passes between two looks
_FINAL_STEPS = 200  # of gradient descent, at most: it needs O(log(ε₀/ε))


@dataclass(frozen=True)
class Reached:
    """What was reached, for each seed.

    Attributes:
        steps: Steps until gradient descent alone leads into an (ε, √ε)-flat minimum, within 2 %; NaN where that was not
            so. Shape (seeds,).
        perturbed_steps: How many of them were perturbed, the others being of gradient descent above the threshold.
        final_steps: Of gradient descent from there until ‖x − Φ(x)‖ ≤ ε, the phase that Theorem 2 ends with.
        points: The ends, (seeds, d).
        distances: ‖x − Φ(x)‖ there, by the closed form.
        slopes: ‖∇[tr̄(Φ(x))]‖ there.
    """

    steps: np.ndarray
    perturbed_steps: np.ndarray
    final_steps: np.ndarray
    points: Tensor
    distances: np.ndarray
    slopes: np.ndarray

    def are_flat(self, eps: float) -> np.ndarray:
        """Tell of each seed whether it ended in an (ε, √ε)-flat minimum."""
        return (self.distances <= eps) & (self.slopes <= math.sqrt(eps))


def reach(
    valley: Valley,
    method: str,
    start: Tensor,
    scaling: Scaling,
    *,
    eps: float,
    seed: int,
    max_steps: int,
    watch: Callable[[int], None] = lambda _: None,
) -> Reached:
    """Walk from ``start`` until every seed has been where gradient descent ends in an (ε, √ε)-flat minimum.

    Args:
        valley: The problem.
        method: ``"RS"`` or ``"SA"``.
        start: (seeds, d).
        scaling: Of the method.
        eps: ε.
        seed: Of everything random.
        max_steps: To give up after.
        watch: Told at every look how many seeds have arrived.

    Raises:
        NonFiniteError: A walk diverged.
    """
    x, ends, look = start, start.clone(), 0
    steps = torch.full_like(start[:, 0], math.nan)
    perturbed, final_steps = torch.zeros_like(steps), torch.zeros_like(steps)
    for step in range(max_steps + 1):
        if step >= look or step == max_steps:
            _check_finite(x, f"{method} with ε = {eps:g} in {valley.dim} dimensions", step)
            below, counts, are_close = _descend(valley, x, scaling.descent, eps)
            arrived = steps.isnan() & are_close & (_slopes(valley, below) <= math.sqrt(eps))
            steps[arrived], final_steps[arrived], ends[arrived] = float(step), counts[arrived], below[arrived]
            watch(int((~steps.isnan()).sum()))
            if not bool(steps.isnan().any()):
                break
            look = max(step + 1, math.ceil(step * (1 + _RESOLUTION)))
        perturbed += steps.isnan() & (valley.gradient(x).norm(dim=-1) <= scaling.threshold)
        x = x - scaling.eta * direction(valley, method, x, scaling, seed=seed, step=step)
    return Reached(
        steps.numpy(),
        perturbed.numpy(),
        final_steps.numpy(),
        ends,
        _distances(valley, ends).numpy(),
        _slopes(valley, ends).numpy(),
    )


def _check_finite(x: Tensor, who: str, step: int) -> None:
    if not bool(x.isfinite().all()):
        raise NonFiniteError(
            f"{who} left the finite numbers before step {step}. Likely cause: a step along a single example's gradient "
            "leaves the valley, as it does in many dimensions. Choose a smaller ε or fewer dimensions."
        )


def _descend(valley: Valley, x: Tensor, step: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Descend, each row until it is ε-close to the limit of its flow; return ends, numbers of steps, and who is."""
    counts = torch.zeros(len(x), dtype=torch.float64)
    are_close = _distances(valley, x) <= eps
    for _ in range(_FINAL_STEPS):
        if bool(are_close.all()):
            break
        x = torch.where(are_close[:, None], x, x - step * valley.gradient(x))
        counts += ~are_close
        are_close = _distances(valley, x) <= eps
    return x, counts, are_close


def _slopes(valley: Valley, x: Tensor) -> Tensor:
    return valley.trace_gradient(x).norm(dim=-1)


def _distances(valley: Valley, x: Tensor) -> Tensor:
    return (x - valley.limit(x)).norm(dim=-1)
