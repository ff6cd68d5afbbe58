"""Matrix sensing by GD, WP-GD and NSO: the runs behind Figure 6, and the trace of Proposition 5.1 over n."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatmin import flows
from flatmin.errors import NonFiniteError
from flatmin.perturb import FlowFunction
from flatmin.problems import MatrixSensing, SensingTask, descent
from flatmin.streams import Stream
from flatmin_lab.recipes.outcome import Watch

QUANTITIES = ("training error", "validation error", "squared distance", "nuclear norm", "trace", "trace over (d+1)‖W‖²")
RANDOM = ("WP-GD", "NSO")
_POINTS = 80


def flow(method: str, sigma: float) -> FlowFunction:
    """Return the flow that ``method`` is."""
    if method == "GD":
        return flows.sgd
    return functools.partial({"WP-GD": flows.wpsgd, "NSO": flows.nso}[method], sigma=sigma)


@dataclass(frozen=True)
class Curve:
    """What was measured along one method's path.

    Attributes:
        method: ``"GD"``, ``"WP-GD"`` or ``"NSO"``.
        steps: At which.
        values: Quantity to numbers, of shape (steps, draws of the noise).
    """

    method: str
    steps: np.ndarray
    values: dict[str, np.ndarray]

    def at(self, quantity: str, step: int) -> np.ndarray:
        """Return a quantity at one of the steps, for each draw of the noise."""
        [[index]] = np.nonzero(self.steps == step)
        return self.values[quantity][index]


def curve(
    task: SensingTask, method: str, *, lr: float, sigma: float, num_steps: int, draws: int, seed: int, watch: Watch
) -> Curve:
    """Descend from the task's start, by ``draws`` independent noises at once, and measure along the way.

    Raises:
        NonFiniteError: The learning rate is too large.
    """
    recorded = set(recorded_steps(num_steps))
    start = task.start.expand(draws if method in RANDOM else 1, -1, -1)
    path = descent(task.train, flow(method, sigma), start, lr=lr, num_steps=num_steps, seed=seed)
    steps, found = list[int](), list[Tensor]()
    for step, w in enumerate(path):
        if step in recorded:
            steps.append(step)
            found.append(_measured(task, w))
        if step % 50 == 0 or step == num_steps:
            watch(f"{method}, learning rate {lr:g}", step, num_steps)
    values = torch.stack(found, 1).double().numpy()
    return Curve(method, np.array(steps), dict(zip(QUANTITIES, values, strict=True)))


def recorded_steps(num_steps: int) -> list[int]:
    """Return about eighty steps in geometric progression, with those of the paper's table among them."""
    printed = [s for s in (20, 100, 500, 1000, 2000, 5000, 20000) if s <= num_steps]
    spread = np.geomspace(1, num_steps, _POINTS).round().astype(int).tolist()
    return sorted({0, num_steps, *printed, *spread})


def _measured(task: SensingTask, w: Tensor) -> Tensor:
    train = task.train
    trace = train.trace(w)
    return torch.stack(
        [
            train.relative_error(w),
            task.validation.relative_error(w),
            train.squared_distance(w),
            train.nuclear_norm(w),
            trace,
            trace / train.expected_trace(w),
        ]
    )


def last_finite_step(task: SensingTask, lr: float, *, num_steps: int) -> int | None:
    """Return after how many steps of GD the weights are finite for the last time; None if they stay so."""
    step = -1
    try:
        for _ in descent(task.train, flows.sgd, task.start, lr=lr, num_steps=num_steps):
            step += 1
    except NonFiniteError:
        return step
    return None


@dataclass(frozen=True)
class TraceAtZeroLoss:
    """Proposition 5.1 over the number of measurements.

    Attributes:
        nums: n.
        exact: tr ∇²f over its expectation (d + 1) ‖W‖², of shape (n, draws).
        printed: (1/n) Σ ‖Aᵢ W‖² over d ‖W‖², as the paper writes it, of the same shape.
        slope: Of the logarithm of the root mean square deviation of ``exact`` from 1, over that of n.
    """

    nums: tuple[int, ...]
    exact: np.ndarray
    printed: np.ndarray
    slope: float


def trace_at_zero_loss(dim: int, rank: int, nums: Sequence[int], *, draws: int, seed: int) -> TraceAtZeroLoss:
    """Draw measurements ``draws`` times for each n, and take the exact trace at a turned solution W = [U⋆, 0] R."""
    source = Stream(seed, (51,)).generator(0, torch.device("cpu"))
    options = {"generator": source, "dtype": torch.float64}
    exact, printed = np.zeros((len(nums), draws)), np.zeros((len(nums), draws))
    for i, n in enumerate(nums):
        for j in range(draws):
            factor, measurements = torch.randn(dim, rank, **options), torch.randn(n, dim, dim, **options)
            problem = MatrixSensing(factor, measurements, convention="code")
            w = problem.minima[0] @ torch.linalg.qr(torch.randn(dim, dim, **options))[0]
            exact[i, j] = problem.trace(w) / problem.expected_trace(w)
            printed[i, j] = (measurements @ w).square().sum() / n / (dim * problem.nuclear_norm(w))
    deviations = np.sqrt(np.square(exact - 1).mean(1))
    slope = float(np.polyfit(np.log(nums), np.log(deviations), 1)[0]) if len(nums) > 1 else math.nan
    return TraceAtZeroLoss(tuple(nums), exact, printed, slope)
