"""All tasks together: interquartile means and probabilities of improvement over the reference (arXiv:2108.13264).

Scores of different tasks are of different scales, so they are taken relative to the reference's run with the same
task and seed: accuracy as a difference, the trace as the logarithm of a ratio, shown as the ratio. Accuracy as it is
stands beside them; its middle half depends on which tasks are easy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flatmin_lab.report.summary import REFERENCE
from flatmin_lab.statistics import Interval, interquartile_mean, probability_of_improvement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.report.summary import MethodSummary


@dataclass(frozen=True)
class Across:
    """One method over all tasks; an interval that is None is not defined, as where a run diverged.

    Attributes:
        method: Its name.
        num_tasks: How many tasks it ran on.
        accuracy: Interquartile mean of test accuracy as it is.
        gain: Interquartile mean of the difference in test accuracy to the reference.
        trace_ratio: Interquartile mean of the logarithm of the trace over the reference's, as a ratio.
        better: By metric, the probability that a run of it is better than one of the reference.
    """

    method: str
    num_tasks: int
    accuracy: Interval | None
    gain: Interval | None = None
    trace_ratio: Interval | None = None
    better: dict[str, Interval | None] | None = None


def across_tasks(rows: Sequence[MethodSummary]) -> list[Across]:
    """Put tasks together, for the methods that have one row on each of several tasks.

    Args:
        rows: All rows of a comparison.

    Returns:
        One entry for each such method; none where there is one task.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    methods = dict.fromkeys(row.method for row in rows)
    if len(tasks) < 2:
        return []
    found = [[row for row in rows if row.method == method] for method in methods]
    return [_across(mine) for mine in found if sorted(row.task for row in mine) == sorted(tasks)]


def _across(rows: Sequence[MethodSummary]) -> Across:
    accuracies = [[r.test_accuracy for r in row.results] for row in rows]
    base = Across(rows[0].method, len(rows), _middle(accuracies))
    if rows[0].method == REFERENCE:
        return base
    gains = [row.differences["test_accuracy"].values for row in rows]
    traces = [row.differences["trace"].pairs for row in rows]
    ratios = [[math.log(mine / other) for mine, other in pairs if min(mine, other) > 0] for pairs in traces]
    whole = [len(logs) == len(pairs) for logs, pairs in zip(ratios, traces, strict=True)]
    logs = _middle(ratios) if all(whole) else None
    return replace(
        base,
        gain=_middle(gains),
        trace_ratio=None if logs is None else _exponential(logs),
        better={
            metric: probability_of_improvement(pairs) if all(pairs) else None
            for metric in ("test_accuracy", "trace")
            for pairs in [[row.differences[metric].upward for row in rows]]
        },
    )


def _middle(scores: Sequence[Sequence[float]]) -> Interval | None:
    if not all(scores) or not all(math.isfinite(x) for task in scores for x in task):
        return None
    return interquartile_mean(scores)


def _exponential(logs: Interval) -> Interval:
    low, mean, high = (math.exp(x) if x < 700 else math.inf for x in (logs.low, logs.mean, logs.high))
    return replace(logs, low=low, mean=mean, high=high)
