"""What the exact trace returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatmin.curvature.results import Estimate, Measured, plus_minus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GGNTrace(Estimate, Measured):
    """The trace of the GGN over the parameters that were covered; see :class:`Measured` for what it cost.

    Attributes:
        value: Its trace over the parameters in ``covered``.
        stderr: 0 where all columns of the outputs' curvature were taken, else the standard error of the sample.
        blocks: The trace of the diagonal block of each covered parameter.
        examples: The trace for each example, in the order of the data, shape (N,); ``value`` is their mean.
        covered: Names of the parameters that ``value`` covers, those without influence on the outputs among them.
        uncovered: Names of the others.
        curved: The covered parameters in which the outputs may be other than piecewise linear. For the rest, the block
            of the Hessian has the same trace.
        exact: Whether nothing was sampled.
        reason: What is not covered and why, in words.
    """

    blocks: Mapping[str, Estimate]
    examples: Tensor = field(repr=False)
    covered: tuple[str, ...]
    uncovered: tuple[str, ...]
    curved: tuple[str, ...]
    exact: bool
    reason: str = ""

    def __repr__(self) -> str:
        """Show value, error, coverage and cost in one line."""
        value = f"{self.value:.6g} exactly" if self.exact else plus_minus(self.value, self.stderr)
        left = f", {len(self.uncovered)} parameters uncovered" if self.uncovered else ""
        return f"GGNTrace({value}{left}, {self.cost()})"
