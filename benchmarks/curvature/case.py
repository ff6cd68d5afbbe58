"""A case: one way of measuring one quantity with one tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from curvature.problems import Problem


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        values: A trace, or eigenvalues in descending order of magnitude, or both.
        products: Products with the operator that it took.
        gradients: The tool's own account in gradient equivalents, where it keeps one.
        note: What it says about how it came to the result.
    """

    values: tuple[float, ...]
    products: int
    gradients: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One way of measuring.

    Attributes:
        tool: The package.
        quantity: ``"trace"``, ``"eigenvalues"`` or ``"both"``.
        method: Its name there.
        prepare: Makes what is needed once, such as the graph of the gradient.
        run: Given that, an effort and a seed, measures.
        estimator: What it is as an estimator, where its error follows from that and the number of products:
            ``"hutchinson"``, ``"hutch++"``, ``"xtrace"``. The effort is then the number of products.
        efforts: Otherwise what to try, in ascending order; the first is the default.
    """

    tool: str
    quantity: str
    method: str
    prepare: Callable[[Problem], Any]
    run: Callable[[Any, Any, int], Outcome]
    estimator: str = ""
    efforts: Sequence[Any] = field(default=(None,))

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.tool} {self.quantity} {self.method}"


def descending(values: Sequence[float]) -> tuple[float, ...]:
    """Return values in descending order of magnitude."""
    return tuple(sorted((float(v) for v in values), key=abs, reverse=True))
