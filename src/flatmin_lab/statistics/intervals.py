"""Intervals for the mean of a few independent values: Student's, and Efron's bootstrap without a law assumed.

- Student. The probable error of a mean. Biometrika 6 (1908).
- Efron. Better bootstrap confidence intervals. J. Amer. Statist. Assoc. 82 (1987), 171-185.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 9999
"""Resamples of a bootstrap: the ends of a 95 % interval then have about 250 beyond them."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    One value says nothing about the spread: its interval reaches from minus to plus infinity, never to a point.
    """

    mean: float
    low: float
    high: float
    num_values: int
    level: float = 0.95

    @property
    def is_bounded(self) -> bool:
        """Whether the width is known: at least two values, all of them finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def is_point(self) -> bool:
        """Whether the interval has no width, as where all values are equal: they then say nothing of the spread."""
        return self.low == self.high

    def covers(self, value: float) -> bool:
        """Whether ``value`` lies in the closed interval."""
        return self.low <= value <= self.high


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    r"""Mean of independent values with Student's interval :math:`\bar x \pm t_{n-1}\, s / \sqrt n` (Student 1908).

    Non-finite values are not dropped (a run that diverged would make its method look good): they make the mean NaN
    and the interval unbounded.

    Args:
        values: One value a seed.
        level: Probability with which the interval covers the true mean, for normal values.

    Returns:
        The mean and its interval; unbounded for a single value.

    Raises:
        ArgumentError: There are no values, or ``level`` is not between 0 and 1.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0])
        Interval(mean=2.0, low=-0.484..., high=4.484..., num_values=3, level=0.95)
        >>> mean_interval([2.0])
        Interval(mean=2.0, low=-inf, high=inf, num_values=1, level=0.95)
    """
    x = as_vector(values, "values")
    require_level(level)
    if not np.isfinite(x).all():
        return Interval(math.nan, -math.inf, math.inf, x.size, level)
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, -math.inf, math.inf, 1, level)
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, x.size, level)


def bca_interval(
    values: Sequence[float], level: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    r"""Mean of independent values with the bias-corrected and accelerated bootstrap interval (Efron 1987).

    With the means :math:`\hat\theta^*` of resamples, their law :math:`\hat G`, the share below the mean
    :math:`z_0 = \Phi^{-1}(\hat G(\bar x))` and the acceleration a from the means without one value, the ends are

    .. math:: \hat G^{-1} \Phi\left( z_0 + \frac{z_0 + z_\alpha}{1 - a (z_0 + z_\alpha)} \right),
        \qquad a = \frac{\sum_i (\bar x_{(\cdot)} - \bar x_{(i)})^3}
        {6 \left( \sum_i (\bar x_{(\cdot)} - \bar x_{(i)})^2 \right)^{3/2}}.

    It assumes no law and follows skewed ones. It does not know of values beyond those it has, so that for a handful
    it is too short: 95 % intervals of normal values cover in 87 % of cases for 6 values, 90 % for 12 and 93 % for 24
    (4000 simulated samples each, standard error below 0.6 %). Student's interval stands beside it.

    Args:
        values: One value a seed.
        level: Probability with which the interval is meant to cover the true mean.
        resamples: Number of resamples.
        seed: Of the resamples.

    Returns:
        The mean and its interval: unbounded for a single value, a point (``is_point``) where all are equal, and
        unbounded about NaN where one is not finite.

    Raises:
        ArgumentError: There are no values, ``level`` is not between 0 and 1, or ``resamples`` is below 1.

    Example:
        >>> bca_interval([1.0, 2.0, 3.0, 10.0])
        Interval(mean=4.0, low=1..., high=8..., num_values=4, level=0.95)
        >>> bca_interval([2.0, 2.0]).is_point, bca_interval([2.0]).is_bounded
        (True, False)
    """
    x = as_vector(values, "values")
    require_level(level)
    if resamples < 1:
        raise ArgumentError(f"resamples must be at least 1, got {resamples!r}.")
    if not np.isfinite(x).all() or x.size == 1:
        return mean_interval(values, level)
    mean = float(x.mean())
    if (x == x[0]).all():  # every resample is the sample: no law to take a quantile of
        return Interval(float(x[0]), float(x[0]), float(x[0]), x.size, level)
    # Near one, by a power of two, which rounds nothing: the cubes of tiny numbers would be zero.
    exponent = int(np.frexp(np.abs(x).max())[1])
    law = stats.bootstrap(
        (np.ldexp(x, -exponent),),
        np.mean,
        n_resamples=resamples,
        confidence_level=level,
        method="BCa",
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue]  (rng since scipy 1.15)
    )
    low, high = (float(np.ldexp(end, exponent)) for end in law.confidence_interval)
    return Interval(mean, low, high, x.size, level)


def require_level(level: float) -> None:
    """Raise where a level is no probability.

    Raises:
        ArgumentError: It is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ArgumentError(f"level must lie between 0 and 1, got {level!r}; 0.95 is usual, not 95.")


def as_vector(values: Sequence[float], name: str) -> np.ndarray:
    """Return values as a vector.

    Raises:
        ArgumentError: There are none, or they are nested.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ArgumentError(f"{name} must be a non-empty sequence of numbers, got shape {x.shape}; no run finished?")
    return x
