"""Runs of several tasks together: probability of improvement and interquartile mean, by stratified bootstrap.

- Agarwal, Schwarzer, Castro, Courville and Bellemare. Deep Reinforcement Learning at the Edge of the Statistical
  Precipice. NeurIPS 2021, arXiv:2108.13264.
- Mann and Whitney. On a test of whether one of two random variables is stochastically larger than the other. Ann.
  Math. Statist. 18 (1947).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from flatmin.errors import ArgumentError
from flatmin_lab.statistics.intervals import RESAMPLES, Interval, as_vector, require_level

if TYPE_CHECKING:
    from collections.abc import Sequence

_TRIMMED = 0.25  # at either end


def probability_of_improvement(
    pairs: Sequence[Sequence[tuple[float, float]]], level: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    r"""Probability that a run of X scores above one of Y on a random task (Agarwal et al. 2021, section 4.3).

    Over tasks k with runs :math:`x_{ki}` and :math:`y_{kj}`, ties counted half as Mann and Whitney (1947) have it:

    .. math:: P(X > Y) = \frac1K \sum_k \frac1{n_k^2} \sum_{i,j}
        \left( 1[x_{ki} > y_{kj}] + \tfrac12 1[x_{ki} = y_{kj}] \right).

    The interval is that of the percentiles under resampling of each task's seeds. The paper draws the runs of X and
    Y independently of each other; here a seed is drawn with both its runs, which is right for runs that are paired
    and for runs that are not. An interval without width means that no resample differs, as where every run of X is
    above every run of Y; it does not mean that the probability is known. For few seeds it is short: of normal scores
    on two tasks with six seeds each, 95 % intervals cover in 92 % of cases (2000 simulated, standard error 0.6 %).

    Args:
        pairs: For each task, one pair (score of X, score of Y) a seed; of scores only the order matters.
        level: Probability with which the interval is meant to cover.
        resamples: Number of resamples.
        seed: Of the resamples.

    Returns:
        The probability and its interval, unbounded where a task has a single seed; all NaN where a score is.

    Raises:
        ArgumentError: There is no task, a task has no pair, or ``level`` is not between 0 and 1.

    Example:
        >>> probability_of_improvement([[(2.0, 1.0), (3.0, 2.0)]], resamples=100).mean
        0.875
    """
    tasks = _checked([np.asarray(task, dtype=np.float64).reshape(-1, 2) for task in pairs], "pairs", level)
    number = sum(map(len, tasks))
    if not all(np.isfinite(task).all() for task in tasks):
        return Interval(math.nan, -math.inf, math.inf, number, level)
    wins = [(1 + np.sign(x[:, None] - y[None, :])) / 2 for x, y in (task.T for task in tasks)]
    generator = np.random.default_rng(seed)
    drawn = np.zeros(resamples)
    for win in wins:
        counts = generator.multinomial(len(win), np.full(len(win), 1 / len(win)), size=resamples)
        drawn += np.einsum("ri,ij,rj->r", counts, win, counts, optimize=True) / len(win) ** 2 / len(wins)
    value = float(np.mean([win.mean() for win in wins]))
    return _percentiles(value, drawn, tasks, number, level)


def interquartile_mean(
    scores: Sequence[Sequence[float]], level: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    r"""Mean of the middle half of the runs of all tasks together (Agarwal et al. 2021, section 4.2).

    Of N scores in order, :math:`\lfloor N / 4 \rfloor` at either end are left out. Less moved by outliers than the
    mean and by far less random than the median. The interval is that of the percentiles under resampling of each
    task's runs (stratified bootstrap).

    Scores of different tasks must be of one scale, or the middle half is that of the tasks and not of the runs:
    :mod:`flatmin_lab.report.across` takes accuracy as its difference to the reference of the same seed, and the trace
    as the logarithm of its ratio to it.

    Args:
        scores: For each task, one score a run.
        level: Probability with which the interval is meant to cover.
        resamples: Number of resamples.
        seed: Of the resamples.

    Returns:
        The interquartile mean and its interval, unbounded where a task has a single run; all NaN where a score is.

    Raises:
        ArgumentError: There is no task, a task has no run, or ``level`` is not between 0 and 1.

    Example:
        >>> interquartile_mean([[0.0, 1.0], [2.0, 99.0]], resamples=100).mean
        1.5
    """
    tasks = _checked([as_vector(task, "scores") for task in scores], "scores", level)
    pooled = np.concatenate(tasks)
    if not np.isfinite(pooled).all():
        return Interval(math.nan, -math.inf, math.inf, pooled.size, level)
    generator = np.random.default_rng(seed)
    drawn = [task[generator.integers(0, task.size, size=(resamples, task.size))] for task in tasks]
    means = stats.trim_mean(np.concatenate(drawn, axis=1), _TRIMMED, axis=1)
    return _percentiles(float(stats.trim_mean(pooled, _TRIMMED)), means, tasks, pooled.size, level)


def _checked(tasks: list[np.ndarray], name: str, level: float) -> list[np.ndarray]:
    require_level(level)
    if not tasks or not all(len(task) for task in tasks):
        raise ArgumentError(
            f"{name} has {len(tasks)} tasks with {[len(task) for task in tasks]} runs; each needs one or more. Leave "
            "out tasks on which no run finished."
        )
    return tasks


def _percentiles(value: float, drawn: np.ndarray, tasks: Sequence[np.ndarray], number: int, level: float) -> Interval:
    if min(map(len, tasks)) < 2:
        return Interval(value, -math.inf, math.inf, number, level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), number, level)
