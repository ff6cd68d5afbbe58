"""A comparison reduced to what it shows: intervals by method, and paired differences to the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from flatmin_lab.statistics import Interval, SignFlip, mean_interval, sign_flip_test

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.spec import Comparison, RunResult, Selection

REFERENCE = "sgd"
"""The method that all others are compared with."""

ALPHA = 0.05
"""Level below which a difference counts as shown."""

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


class Verdict(StrEnum):
    """What a paired difference shows; nothing is called a difference that interval and test do not both carry."""

    HIGHER = "higher"
    LOWER = "lower"
    NOT_SHOWN = "no difference shown"
    TOO_FEW_SEEDS = "not enough seeds"
    UNDEFINED = "not defined"


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
class Difference:
    """Paired difference of one metric, method minus reference, over the seeds that both have finished."""

    metric: str
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    interval: Interval | None = None
    test: SignFlip | None = None
    why_undefined: str = ""

    @property
    def verdict(self) -> Verdict:
        """What interval and test together show at level `ALPHA`."""
        if self.interval is None or self.test is None:
            return Verdict.UNDEFINED
        all_tied_for_good = not any(self.values) and 2.0 ** (1 - len(self.values)) <= ALPHA
        if not self.test.can_reach(ALPHA) and not all_tied_for_good:
            return Verdict.TOO_FEW_SEEDS
        if self.test.p > ALPHA or self.interval.covers(0.0):
            return Verdict.NOT_SHOWN
        return Verdict.HIGHER if self.interval.mean > 0 else Verdict.LOWER


@dataclass(frozen=True)
class MethodSummary:
    """One row of the result table: a method on a task. ``differences`` is empty for the reference itself."""

    task: str
    method: str
    value: float | None
    hyperparameter: str
    results: tuple[RunResult, ...]
    quantities: dict[str, Quantity]
    differences: dict[str, Difference]


def runs_of(comparison: Comparison, task: str, method: str) -> tuple[RunResult, ...]:
    """The final runs of one method on one task, by seed."""
    found = [r for r in comparison.results if r.spec.task == task and r.spec.method == method]
    return tuple(sorted(found, key=lambda r: r.spec.seed))


def selection_of(comparison: Comparison, task: str, method: str) -> Selection | None:
    """How the method's sigma or rho was chosen on the task, if it has one."""
    found = [s for s in comparison.selections if s.task == task and s.method == method]
    return found[0] if found else None


def summarise(comparison: Comparison) -> tuple[MethodSummary, ...]:
    """Reduce the runs to one summary for each task and method, in the order that was asked for.

    Args:
        comparison: What was run. Methods without a finished run keep their row.

    Returns:
        One summary for each task and method.
    """
    return tuple(
        _summary(comparison, task, method) for task in comparison.spec.tasks for method in comparison.spec.methods
    )


def _summary(comparison: Comparison, task: str, method: str) -> MethodSummary:
    results = runs_of(comparison, task, method)
    selection = selection_of(comparison, task, method)
    differences = {}
    if method != REFERENCE:
        reference = runs_of(comparison, task, REFERENCE)
        differences = {metric: paired_difference(results, reference, metric) for metric in COMPARED}
    return MethodSummary(
        task=task,
        method=method,
        value=results[0].spec.value if results else selection.chosen if selection else None,
        hyperparameter=selection.hyperparameter if selection else "",
        results=results,
        quantities={metric: quantity(results, metric) for metric in METRICS},
        differences=differences,
    )


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


def paired_difference(results: Sequence[RunResult], reference: Sequence[RunResult], metric: str) -> Difference:
    """Compare two methods seed by seed.

    Args:
        results: Runs of a method on a task.
        reference: Runs of the reference on the same task.
        metric: A field of `RunResult`.

    Returns:
        Interval and sign-flip test of the differences, or the reason why there are none.
    """
    theirs = {r.spec.seed: getattr(r, metric) for r in reference}
    pairs = {
        r.spec.seed: (mine, theirs[r.spec.seed])
        for r in results
        if (mine := getattr(r, metric)) is not None and theirs.get(r.spec.seed) is not None
    }
    if not reference:
        return Difference(metric, why_undefined="the reference has no finished run")
    if not pairs:
        return Difference(metric, why_undefined="no seed has this for both methods")
    diverged = sum(not all(map(math.isfinite, pair)) for pair in pairs.values())
    if diverged:
        return Difference(metric, why_undefined=f"{diverged} of {len(pairs)} pairs of runs diverged")
    values = tuple(mine - other for mine, other in pairs.values())
    return Difference(metric, tuple(pairs), values, mean_interval(values), sign_flip_test(values))
