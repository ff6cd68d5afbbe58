"""What the paper says of Figure 3, each with the paired difference here that speaks for or against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatmin_lab.recipes.escape2023.fig3_results import Results
    from flatmin_lab.statistics import Interval


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and the difference here that speaks for or against it.

    Attributes:
        says: The paper.
        measured: What the difference is of.
        found: The difference and its interval.
        sign: Of the difference if the paper is right.
    """

    says: str
    measured: str
    found: Interval
    sign: int

    @property
    def verdict(self) -> str:
        """``agrees`` or ``disagrees`` where the interval leaves zero out, else ``undecided``."""
        low, high = sorted((self.sign * self.found.low, self.sign * self.found.high))
        return "agrees" if low > 0 else "disagrees" if high < 0 else "undecided"


def claims(found: Results) -> list[Claim]:
    """The claims of the paper, on what there are walks of."""
    small, *_, large = sorted({c.way.batch_size for c in found.chosen})
    listed: list[Claim] = []

    def claim(says: str, one: tuple[str, int], other: tuple[str, int], metric: str, sign: int) -> None:
        a, b = found.of(*one), found.of(*other)
        if a is not None and b is not None:
            what = f"{metric.replace('_', ' ')} of {a.way.label} over {b.way.label}"
            listed.append(Claim(says, what, found.over(a, b, metric), sign))

    accuracy, trace = "test_accuracy", "trace"
    claim("RS raises the test accuracy, SGD does not", ("RS", large), ("SGD", large), accuracy, 1)
    claim("SA raises the test accuracy, SGD does not", ("SA", large), ("SGD", large), accuracy, 1)
    claim("SA is faster than RS", ("SA", large), ("RS", large), accuracy, 1)
    claim("SA is quite effective with batches of one", ("SA", small), ("SGD", small), accuracy, 1)
    claim("RS lowers the trace", ("RS", large), ("SGD", large), trace, -1)
    claim("SA lowers the trace", ("SA", large), ("SGD", large), trace, -1)
    return listed
