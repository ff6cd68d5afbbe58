"""Gradient norms of NSO and WP-GD on quadratics and on the plateau chain: the runs behind the bounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatmin import flows
from flatmin.problems import PlateauChain, Quadratic, Setting, descent, expected_square_gradients
from flatmin.streams import Stream

DIM = 4
_BLOCK = 100  # steps whose errors are drawn at once


@dataclass(frozen=True)
class Simulated:
    """Square gradient norms on a quadratic, over independent runs, and what they are in expectation.

    Attributes:
        mean: Over the steps 1 to T and the runs.
        mean_stderr: Its standard error.
        last: At step T, over the runs.
        last_stderr: Its standard error.
        expected_mean: What ``mean`` is in expectation.
        expected_least: The smallest expectation of any step.
        expected_last: What ``last`` is in expectation.
    """

    mean: float
    mean_stderr: float
    last: float
    last_stderr: float
    expected_mean: float
    expected_least: float
    expected_last: float

    @property
    def scores(self) -> tuple[float, float]:
        """How far mean and last are from their expectations, in standard errors."""
        mean = (self.mean - self.expected_mean) / self.mean_stderr
        return mean, (self.last - self.expected_last) / self.last_stderr


def on_quadratic(
    setting: Setting, *, method: str = "NSO", sigma: float = 0.1, momentum: float = 0.0, runs: int, seed: int
) -> Simulated:
    """Descend on (C/2)‖W‖² in four dimensions from ‖W₀‖² = 2D²/C, at the learning rate of Proposition 4.2.

    Args:
        setting: The constants.
        method: ``"NSO"``, whose perturbations cancel on a quadratic, or ``"WP-GD"``, whose add to the noise.
        sigma: Standard deviation of the perturbation.
        momentum: μ; the learning rate is then smaller by 1 - μ, so that steps sum up to the same.
        runs: Independent ones.
        seed: Of errors and perturbations.
    """
    C, k, T = setting.smoothness, setting.num_perturbations, setting.num_steps
    flow = functools.partial({"NSO": flows.nso, "WP-GD": flows.wpsgd}[method], sigma=sigma, num_perturbations=k)
    lr = setting.learning_rate * (1 - momentum)
    problem = Quadratic(C, DIM)
    start = torch.full((runs, DIM), math.sqrt(2 * setting.distance**2 / C / DIM), dtype=torch.float64)
    # The mean of k independent errors is one error of a k-th of the variance.
    errors = _Errors(start.shape, setting.gradient_noise / math.sqrt(k * DIM), seed)
    path = descent(problem, flow, start, lr=lr, num_steps=T, momentum=momentum, tilt=errors, seed=seed)
    total, last = torch.zeros(runs, dtype=torch.float64), torch.zeros(runs, dtype=torch.float64)
    for step, w in enumerate(path):
        last = problem.gradient(w).square().sum(-1)
        total += last if step else 0
    variance = setting.gradient_noise**2 + (C**2 * DIM * sigma**2 if method == "WP-GD" else 0)
    options = {"curvature": C, "distance": setting.distance, "momentum": momentum}
    expected = expected_square_gradients([lr] * T, noise_variance=variance / k, **options)[1:]
    return Simulated(*_mean(total / T), *_mean(last), math.fsum(expected) / T, min(expected), expected[-1])


class _Errors:
    """The error of each step's gradient, normal and independent; drawn for many steps at once."""

    def __init__(self, shape: tuple[int, ...], std: float, seed: int) -> None:
        self._shape, self._std, self._seed = shape, std, seed
        self._block, self._drawn = -1, torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        block, place = divmod(step, _BLOCK)
        if block != self._block:
            # The flow draws at paths of two coordinates, (step, j), so that one of three is nobody else's.
            source = Stream(self._seed, (1, block, 0)).generator(0, torch.device("cpu"))
            self._drawn = self._std * torch.randn(_BLOCK, *self._shape, generator=source, dtype=torch.float64)
            self._block = block
        return self._drawn[place]


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@dataclass(frozen=True)
class Chained:
    """NSO on the plateau chain.

    Attributes:
        least: The smallest square gradient norm of any step.
        reach: How far any iterate got from the middle of its plateaus, in half-widths: above 1 it would have left.
        budget: F(W₀) - min F over D².
    """

    least: float
    reach: float
    budget: float


def on_chain(setting: Setting, *, sigma: float = 0.1, seed: int) -> Chained:
    """Descend along the chain that is made for this setting, at the fixed learning rate that spends its budget (50)."""
    C, T, D = setting.smoothness, setting.num_steps, setting.distance
    noise = setting.gradient_noise / math.sqrt(setting.num_perturbations)
    lr = math.sqrt(8 * D**2 / (9 * C * noise**2 * T))
    chain = PlateauChain([lr] * T, smoothness=C, gradient_noise=noise)
    flow = functools.partial(flows.nso, sigma=sigma, noise=chain.noise(sigma))
    path = descent(
        chain, flow, chain.start(D), lr=lr, num_steps=T, tilt=functools.partial(chain.error, seed=seed), seed=seed
    )
    least, reach = math.inf, 0.0
    for step, w in enumerate(path):
        reach = max(reach, float((w[1:].abs() / chain.plateaus).max()))
        if step:
            least = min(least, float(chain.gradient(w).square().sum()))
    return Chained(least, reach, chain.budget(D) / D**2)


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return the slope of log y over log x by least squares, and its standard error from the residuals.

    Example:
        >>> slope, error = fitted_slope([1, 2, 4], [1, 4, 16])
        >>> round(slope, 6), round(error, 6)
        (2.0, 0.0)
    """
    a, b = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    a = a - a.mean()
    slope = float(a @ b / (a @ a))
    left = b - b.mean() - slope * a
    return slope, math.sqrt(float(left @ left) / max(1, len(a) - 2) / float(a @ a))
