"""A comparison reduced to what it shows: a row for each arm, with intervals and paired differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flatmin_lab.methods import METHODS
from flatmin_lab.report.differences import ALPHA, REFERENCE, Difference, Verdict, corrected, paired_difference
from flatmin_lab.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flatmin_lab.spec import Arm, Comparison, RunResult, Selection

__all__ = [
    "ALPHA",
    "COMPARED",
    "METRICS",
    "REFERENCE",
    "Difference",
    "MethodSummary",
    "Quantity",
    "Verdict",
    "hyperparameter",
    "paired_difference",
    "quantity",
    "reference_of",
    "runs_of",
    "selection_of",
    "summarise",
]

METRICS = (
    "test_accuracy",
    "test_loss",
    "train_loss",
    "trace",
    "top_eigenvalue",
    "seconds",
    "gradient_evaluations",
)
"""What is summarised for each method: fields of `RunResult`."""

COMPARED = ("test_accuracy", "trace")
"""What is compared with the reference, seed by seed."""


@dataclass(frozen=True)
class Quantity:
    r"""One metric of one method over its seeds.

    Attributes:
        interval: Mean and interval over the seeds that have a value; None where none has.
        num_runs: Number of finished runs.
        num_diverged: How many of them gave NaN or infinity; they are in the mean, which is then NaN itself.
        measurement_stderr: Standard error that the mean has from the randomness of the measurement alone, where the
            metric is an estimate: :math:`\\sqrt{\\sum_i e_i^2} / n`. It is already inside the interval.
    """

    interval: Interval | None
    num_runs: int
    num_diverged: int = 0
    measurement_stderr: float | None = None


@dataclass(frozen=True)
class MethodSummary:
    """One row of the result table: an arm. ``differences`` is empty for the reference itself."""

    arm: Arm
    value: float | None
    hyperparameter: str
    results: tuple[RunResult, ...]
    quantities: dict[str, Quantity]
    differences: dict[str, Difference]

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.arm.task

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.arm.method


def runs_of(comparison: Comparison, task: str, method: str) -> tuple[RunResult, ...]:
    """The final runs of one method on one task, by seed."""
    found = [r for r in comparison.results if r.spec.task == task and r.spec.method == method]
    return tuple(sorted(found, key=lambda r: r.spec.seed))


def selection_of(comparison: Comparison, arm: Arm) -> Selection | None:
    """How the arm's sigma, rho or alpha was chosen, if it had a choice."""
    for s in comparison.selections:
        if _setting(s) == _setting(arm) and arm.values in (None, s.grid):
            return s
    return None


def summarise(comparison: Comparison) -> tuple[MethodSummary, ...]:
    """Reduce the runs to one summary for each arm, in the order that was asked for.

    Args:
        comparison: What was run. Arms without a finished run keep their row.

    Returns:
        One summary for each arm.
    """
    runs = {arm: _runs(comparison, arm) for arm in comparison.spec.arms}
    rows = [_summary(comparison, arm, runs) for arm in runs]
    return tuple(row for task in comparison.spec.tasks for row in _corrected([r for r in rows if r.task == task]))


def _setting(thing: Arm | Selection) -> tuple[object, ...]:
    return thing.task, thing.method, thing.budget, thing.changes


def _runs(comparison: Comparison, arm: Arm) -> tuple[RunResult, ...]:
    selection = selection_of(comparison, arm)
    wanted = (selection.chosen,) if selection else arm.values  # None takes what there is
    found = [
        r
        for r in comparison.results
        if (r.spec.task, r.spec.method, r.spec.budget, r.spec.changes) == _setting(arm)
        and (wanted is None or r.spec.value in wanted)
    ]
    return tuple(sorted(found, key=lambda r: r.spec.seed))


def _summary(comparison: Comparison, arm: Arm, runs: dict[Arm, tuple[RunResult, ...]]) -> MethodSummary:
    results, selection = runs[arm], selection_of(comparison, arm)
    differences = {}
    if arm.method != REFERENCE:
        other = reference_of(arm, runs)
        reference = () if other is None else runs[other]
        differences = {metric: paired_difference(results, reference, metric) for metric in COMPARED}
    return MethodSummary(
        arm=arm,
        value=results[0].spec.value if results else selection.chosen if selection else None,
        hyperparameter=selection.hyperparameter if selection else hyperparameter(arm.method),
        results=results,
        quantities={metric: quantity(results, metric) for metric in METRICS},
        differences=differences,
    )


def hyperparameter(method: str) -> str:
    """What a method's value is; empty for a method that has none or is not registered any more."""
    return (METHODS[method].hyperparameter or "") if method in METHODS else ""


def reference_of(arm: Arm, arms: Iterable[Arm]) -> Arm | None:
    """The arm that another is compared with: the reference on its task, in the setting nearest to its own.

    That is the one with its changes and its budget, else with its changes, else the first.
    """
    found = [a for a in arms if a.task == arm.task and a.method == REFERENCE]
    alike = [a for a in found if a.changes == arm.changes]
    return next(iter([a for a in alike if a.budget == arm.budget] or alike or found), None)


def _corrected(rows: Sequence[MethodSummary]) -> list[MethodSummary]:
    """The rows of one task, their p-values corrected for each other: one family of tests for each metric."""
    families = {metric: corrected([row.differences.get(metric) for row in rows]) for metric in COMPARED}
    return [
        replace(row, differences={metric: d for metric in COMPARED if (d := families[metric][i]) is not None})
        for i, row in enumerate(rows)
    ]


def quantity(results: Sequence[RunResult], metric: str) -> Quantity:
    """Summarise one metric over runs.

    Args:
        results: Runs of one method on one task.
        metric: A field of `RunResult`; runs that have None there were not measured and are left out.

    Returns:
        The mean with its interval, and how many runs stand behind it.
    """
    values = [float(value) for r in results if (value := getattr(r, metric)) is not None]
    stderrs = [e for r in results if metric == "trace" and (e := r.trace_stderr) is not None]
    return Quantity(
        interval=mean_interval(values) if values else None,
        num_runs=len(results),
        num_diverged=sum(not math.isfinite(v) for v in values),
        measurement_stderr=math.hypot(*stderrs) / len(stderrs) if stderrs else None,
    )
