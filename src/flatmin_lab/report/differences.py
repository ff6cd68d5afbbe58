"""Paired differences to the reference, and what they show.

A difference counts as shown where its p-value still falls below `ALPHA` after Holm's correction over all methods of
its task that are compared with the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from flatmin_lab.statistics import (
    Interval,
    SignFlip,
    bca_interval,
    holm,
    mean_interval,
    probability_of_improvement,
    sign_flip_test,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.spec import RunResult

REFERENCE = "sgd"
"""The method that all others are compared with."""

ALPHA = 0.05
"""Level below which a difference counts as shown."""

LOWER_IS_BETTER = ("trace",)
"""Those of them of which less is better."""


class Verdict(StrEnum):
    """What a paired difference shows; nothing is called a difference that interval and test do not both carry."""

    HIGHER = "higher"
    LOWER = "lower"
    NOT_SHOWN = "no difference shown"
    TOO_FEW_SEEDS = "not enough seeds"
    UNDEFINED = "not defined"


@dataclass(frozen=True)
class Difference:
    """Paired difference of one metric, method minus reference, over the seeds that both have finished.

    Attributes:
        metric: A field of `RunResult`.
        seeds: That both have.
        pairs: Value of the method and of the reference, by seed.
        interval: Student's, of the mean difference.
        test: That the differences are symmetric about zero.
        why_undefined: Why there are none.
        num_compared: Number of tests that Holm's correction is made for; 1 for none.
        adjusted_p: The p-value after it; that of ``test`` where nothing is corrected for.
        adjusted_reachable: The smallest that these seeds could give after it.
    """

    metric: str
    seeds: tuple[int, ...] = ()
    pairs: tuple[tuple[float, float], ...] = ()
    interval: Interval | None = None
    test: SignFlip | None = None
    why_undefined: str = ""
    num_compared: int = 1
    adjusted_p: float = math.nan
    adjusted_reachable: float = math.nan

    @property
    def values(self) -> tuple[float, ...]:
        """The differences."""
        return tuple(mine - other for mine, other in self.pairs)

    @cached_property
    def bca(self) -> Interval | None:
        """The bootstrap interval of the mean difference; None where there is none."""
        return None if self.interval is None else bca_interval(self.values)

    @cached_property
    def improvement(self) -> Interval | None:
        """Probability that a run of the method is better than one of the reference; None where there is no pair."""
        return None if self.interval is None else probability_of_improvement([self.upward])

    @property
    def upward(self) -> list[tuple[float, float]]:
        """The pairs, turned so that more is better."""
        sign = -1.0 if self.metric in LOWER_IS_BETTER else 1.0
        return [(sign * mine, sign * other) for mine, other in self.pairs]

    @property
    def verdict(self) -> Verdict:
        """What interval and corrected test together show at level `ALPHA`."""
        if self.interval is None or self.test is None:
            return Verdict.UNDEFINED
        all_tied_for_good = not any(self.values) and self.num_compared * 2.0 ** (1 - len(self.values)) <= ALPHA
        if self.adjusted_reachable > ALPHA and not all_tied_for_good:
            return Verdict.TOO_FEW_SEEDS
        if self.adjusted_p > ALPHA or self.interval.covers(0.0):
            return Verdict.NOT_SHOWN
        return Verdict.HIGHER if self.interval.mean > 0 else Verdict.LOWER


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
    values = [mine - other for mine, other in pairs.values()]
    test = sign_flip_test(values)
    return Difference(
        metric,
        seeds=tuple(pairs),
        pairs=tuple(pairs.values()),
        interval=mean_interval(values),
        test=test,
        adjusted_p=test.p,
        adjusted_reachable=test.reachable,
    )


def corrected(family: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct the p-values of differences that are looked at together, by Holm's procedure.

    Args:
        family: Differences in one metric; those without a test are left out of the count and stay as they are.

    Returns:
        The same, with `num_compared`, `adjusted_p` and `adjusted_reachable`.
    """
    tests = [d.test for d in family if d is not None and d.test is not None]
    adjusted = iter(zip(holm([t.p for t in tests]), holm([t.reachable for t in tests]), strict=True))
    found: list[Difference | None] = []
    for d in family:
        if d is None or d.test is None:
            found.append(d)
            continue
        p, reachable = next(adjusted)
        found.append(replace(d, num_compared=len(tests), adjusted_p=p, adjusted_reachable=reachable))
    return found
