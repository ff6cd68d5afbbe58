r"""Example 1, (x₁x₂ − 1)², by RS, SA, label-noise SGD and gradient descent from one sharp minimum.

Along the minima (e^s, e^−s) the trace over d is 2 cosh 2s. A method that moves by −c/2 ∇tr a step, projected onto the
minima, has the drift ṡ = −c tanh 2s·2, so that

.. math:: \sinh 2s(t) = e^{-4ct}\sinh 2s(0),

with c = ηρ²/2 for RS (whose drift is that of the trace over d = 2), ηρ² for SA, and η²σ² for label noise of size σ: its
gradients scatter with the covariance 2σ²∇²f, the weights across the minima therefore with ησ², to first order in η
(Damian, Ma, Lee, arXiv:2106.06530).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flatmin.measures import is_flat
from flatmin.problems import Hyperbolas
from flatmin.regularizers import TargetNoise
from flatmin_lab.recipes.escape2023.drawings import draw_example1
from flatmin_lab.recipes.escape2023.rows import direction
from flatmin_lab.recipes.escape2023.scalings import Scaling
from flatmin_lab.recipes.outcome import Outcome, Table, written
from flatmin_lab.seeds import derive

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatmin_lab.recipes.outcome import Watch

START = (4.0, 0.25)
EPS = 0.01
SETTING = Scaling(eta=0.01, descent=0.01, rho=0.1, threshold=0.2)
NOISE = 1.0  # η²σ² = ηρ²: as fast as SA
_DRIFT = {
    "RS": SETTING.eta * SETTING.rho**2 / 2,
    "SA": SETTING.eta * SETTING.rho**2,
    "label noise": SETTING.eta**2 * NOISE**2,
    "GD": 0.0,
}
_LOOKS = 200
_FINAL_STEPS = 500
SIZES = {"toy": (1000, 4), "small": (40_000, 64), "paper": (100_000, 512)}
"""Steps and seeds."""


@dataclass(frozen=True)
class Walk:
    """The walks of one method.

    Attributes:
        steps: At which they were looked at, (looks,).
        points: Iterates, (looks, seeds, 2).
        traces: tr̄(Φ(x)) there, (looks, seeds).
        predicted: The same for the predicted drift, (looks,).
        ends: After some steps of gradient descent from the last, (seeds, 2).
    """

    steps: np.ndarray
    points: np.ndarray
    traces: np.ndarray
    predicted: np.ndarray
    ends: Tensor


def example1(size: str, seed: int, watch: Watch) -> Outcome:
    """Walk from (4, 1/4) by every method, and ask of the ends whether they are flat minima."""
    num_steps, seeds = SIZES[size]
    valley = Hyperbolas()
    walks = {name: walk(valley, name, num_steps, seeds, seed, watch) for name in _DRIFT}
    return Outcome(
        tables=(_path_table(walks), _end_table(valley, walks)),
        figures={"example1": lambda: draw_example1(walks)},
        series={name.replace(" ", "-").lower(): _columns(walk) for name, walk in walks.items()},
        text=_text(valley, walks, num_steps, seeds),
    )


def walk(valley: Hyperbolas, name: str, num_steps: int, seeds: int, seed: int, watch: Watch) -> Walk:
    """Walk by one method, all seeds at once.

    Args:
        valley: The problem.
        name: ``"RS"``, ``"SA"``, ``"label noise"`` or ``"GD"``.
        num_steps: How far.
        seeds: How many walks.
        seed: Of everything random.
        watch: Told of the progress.
    """
    move = _move(valley, name, derive(seed, name))
    x = torch.tensor(START, dtype=torch.float64).repeat(seeds, 1)
    looks = np.unique(np.linspace(0, num_steps, _LOOKS + 1).astype(int))
    points: list[Tensor] = []
    for step in range(num_steps + 1):
        if step == looks[len(points)]:
            points.append(x)
            watch(name, step, num_steps)
        if step < num_steps:
            x = x - SETTING.eta * move(x, step)
    ends = x
    for _ in range(_FINAL_STEPS):
        ends = ends - SETTING.eta * valley.gradient(ends)
    seen = torch.stack(points)
    traces = valley.trace(valley.limit(seen)) / valley.dim
    angle = math.sinh(2 * math.log(START[0])) * np.exp(-4 * _DRIFT[name] * looks)
    return Walk(looks, seen.numpy(), traces.numpy(), 2 * np.sqrt(1 + angle**2), ends)


def _move(valley: Hyperbolas, name: str, seed: int) -> Callable[[Tensor, int], Tensor]:
    """Return what gives the direction of a step at points (seeds, 2)."""
    if name == "GD":
        return lambda x, _: valley.gradient(x)
    if name == "label noise":
        noisy = TargetNoise(NOISE, seed=seed)

        def by_label_noise(x: Tensor, _: int) -> Tensor:
            targets = noisy(torch.ones(len(x), valley.num_examples, dtype=x.dtype))
            return torch.func.grad(lambda x: valley.loss(x, targets).sum())(x)

        return by_label_noise
    return lambda x, step: direction(valley, name, x, SETTING, seed=seed, step=step)


def _path_table(walks: dict[str, Walk]) -> Table:
    rows = tuple(
        (
            name,
            float(walk.steps[i]),
            *map(float, walk.points[i].mean(0)),
            float(walk.traces[i].mean()),
            float(walk.traces[i].std(ddof=1)),
            float(walk.predicted[i]),
        )
        for name, walk in walks.items()
        for i in (len(walk.steps) // 10, len(walk.steps) // 2, len(walk.steps) - 1)
    )
    columns = ("method", "step", "x₁", "x₂", "trace over d", "its deviation over seeds", "predicted")
    return Table("path", columns, rows, "Means over seeds on the way; the trace is that at Φ(x).")


def _end_table(valley: Hyperbolas, walks: dict[str, Walk]) -> Table:
    rows = []
    for name, walk in walks.items():
        found = [is_flat(valley.value, x, EPS, math.sqrt(EPS), trace=valley.trace) for x in walk.ends[:4]]
        rows.append(
            (
                name,
                f"{sum(map(bool, found))} of {len(found)}",
                max(f.distance for f in found),
                max(f.excess for f in found),
                max(f.gradient_norm for f in found),
                max(f.normalized_trace for f in found),
                max(f.trace_gradient_norm for f in found),
            )
        )
    columns = ("method", "flat", "‖x − Φ(x)‖", "f(x) − f(Φ(x))", "‖∇f(x)‖", "trace over d", "‖∇(tr̄∘Φ)(x)‖")
    caption = (
        f"The first seeds after {_FINAL_STEPS} steps of gradient descent from the last iterate, as is_flat sees them "
        f"for ε = {EPS:g}, ε′ = {math.sqrt(EPS):g}; the largest of each."
    )
    return Table("ends", columns, tuple(rows), caption)


def _columns(walk: Walk) -> dict[str, np.ndarray]:
    return {
        "step": walk.steps,
        "x1": walk.points[..., 0].mean(1),
        "x2": walk.points[..., 1].mean(1),
        "trace": walk.traces.mean(1),
        "lowest": walk.traces.min(1),
        "highest": walk.traces.max(1),
        "predicted": walk.predicted,
    }


def _text(valley: Hyperbolas, walks: dict[str, Walk], num_steps: int, seeds: int) -> str:
    last = {
        name: f"{written(float(walk.traces[-1].mean()))} ({walk.traces[-1].mean() / walk.predicted[-1]:.3f} of the "
        "predicted)"
        for name, walk in walks.items()
    }
    falls = {name: f"{(np.diff(walk.traces.mean(1)) <= 0).mean():.0%}" for name, walk in walks.items()}
    noisy = walks["label noise"]
    share = noisy.traces.mean(1) / noisy.predicted
    slope = float(valley.trace_gradient(torch.tensor(START, dtype=torch.float64)).norm())
    return (
        "**The paper**: the minima of (x₁x₂ − 1)² are x₁x₂ = 1, the trace over d is x₁² + x₂², and the flat minima are "
        "±(1, 1), where it is 2. Perturbations move along the minima, down the trace: RS by ρ²/2 ∇tr̄ a step, SA by d "
        "times as much.\n\n"
        f"**Here**, from ({START[0]:g}, {START[1]:g}) with a trace over d of {walks['GD'].traces[0, 0]:.4f} and a "
        f"slope of {slope:.2f} (η = {SETTING.eta:g}, ρ = {SETTING.rho:g}, ε₀ = {SETTING.threshold:g}; {seeds} seeds), "
        f"the mean of the trace over d after {num_steps} steps is {last['RS']} by RS, {last['SA']} by SA, "
        f"{last['label noise']} by SGD with label noise ±{NOISE:g} in the target, and {last['GD']} by gradient descent."
        f" From look to look it falls, or stays, in {falls['RS']}, {falls['SA']} and {falls['label noise']} of the "
        "intervals by the first three.\n\n"
        "**The prediction** is the drift alone, sinh 2s falling as exp(−4ct) on (e^s, e^−s): c = ηρ²/2 for RS, ηρ² for "
        "SA and η²σ² for label noise, to first order in η. Noise keeps iterates off the minima, and the steps of label "
        f"noise are large beside the curvature here: on the way its trace is {share.min():.3f} to {share.max():.3f} of "
        "the predicted."
    )
