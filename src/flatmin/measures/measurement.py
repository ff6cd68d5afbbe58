"""What a joint measurement returns."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flatmin.curvature.layerwise import Layer, LayerwiseResult
from flatmin.curvature.layout import Layout
from flatmin.curvature.results import EigenPairs, Estimate, TraceEstimate, plus_minus
from flatmin.curvature.spectrum import SpectralDensity
from flatmin.errors import ArgumentError, DataError
from flatmin.measures.gap import GapEstimate
from flatmin.measures.records import from_record, to_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Spent(NamedTuple):
    """What one part of a measurement took.

    Attributes:
        gradients: Gradients of all the data; see :class:`~flatmin.curvature.operators.RiskOperator`.
        seconds: Wall time.
    """

    gradients: float
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Measurement:
    """How curved the loss is at a minimum; what was not asked for is None.

    Attributes:
        loss: f(W), the mean over the examples.
        num_examples: Examples it was measured on.
        num_parameters: d, the number of trainable parameters.
        trace: Of the Hessian.
        eigenvalues: Of the Hessian, those of largest magnitude, of either sign.
        density: Of the Hessian's spectrum.
        layers: The trace of each layer's diagonal block of the Hessian, and its share.
        gap: How much the loss rises on average under noise in the weights; ``gap.trace`` is the smoothed trace.
        spent: What each part took.

    Example:
        >>> print(Measurement(loss=0.25, num_examples=8, num_parameters=3,
        ...                   trace=TraceEstimate(value=10.79, stderr=0.12, num_matvecs=100)))
        3 parameters, 8 examples, loss 0.25
        trace         10.79 ± 0.12
    """

    loss: float
    num_examples: int
    num_parameters: int
    trace: TraceEstimate | None = None
    eigenvalues: EigenPairs | None = None
    density: SpectralDensity | None = None
    layers: LayerwiseResult | None = None
    gap: GapEstimate | None = None
    spent: Mapping[str, Spent] = field(default_factory=dict)

    @property
    def gradients(self) -> float:
        """What was spent in all, in gradients of all the data; what parts shared counts once."""
        return sum(part.gradients for part in self.spent.values())

    @property
    def num_large(self) -> Estimate:
        """The number of eigenvalues whose magnitude exceeds 1 % of the largest: how many directions are not flat.

        Raises:
            ArgumentError: The density was not measured.
        """
        if self.density is None:
            raise ArgumentError(
                "the density was not measured, so eigenvalues cannot be counted: measure(density=True)."
            )
        seen = torch.cat([self.density.nodes[self.density.weights > 0], self.density.outliers])
        bound, d = float(seen.abs().max()) / 100, self.density.dimension
        return self.density.expectation(lambda values: d * (values.abs() > bound).to(values))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, without the eigenvectors; NaN and infinity as texts."""
        return to_record(self, json=True)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Measurement:
        """Return what :meth:`to_dict` was called on, with eigenvectors that have no rows.

        Raises:
            DataError: It is no such record.
        """
        found = from_record(record, KINDS)
        if not isinstance(found, Measurement):
            raise DataError("the record is not one of a Measurement. Pass what to_dict returned.")
        try:
            spent = {name: Spent(*map(float, part)) for name, part in found.spent.items()}
        except (TypeError, ValueError) as error:
            raise DataError(f"the record has {found.spent!r} as its spent. Was it edited?") from error
        return dataclasses.replace(found, spent=spent)

    def __repr__(self) -> str:
        """Show what was measured in one line."""
        parts = [f.name for f in dataclasses.fields(self)[3:-1] if getattr(self, f.name) is not None]
        return f"Measurement({self.num_parameters} parameters, {', '.join(parts)}, {self.gradients:.3g} gradients)"

    def __str__(self) -> str:
        """Show the numbers as a short table."""
        head = f"{self.num_parameters:,} parameters, {self.num_examples:,} examples, loss {self.loss:.4g}"
        return "\n".join([head, *(f"{name:<13} {text}{self._cost(name)}" for name, text in self._rows())])

    def _cost(self, name: str) -> str:
        spent = self.spent.get(name)
        return f"   ({spent.gradients:.3g} gradients, {spent.seconds:.1f} s)" if spent else ""

    def _rows(self) -> Iterator[tuple[str, str]]:
        if self.trace is not None:
            exact = self.trace.stderr == 0
            yield (
                "trace",
                f"{self.trace.value:.6g} exactly" if exact else plus_minus(self.trace.value, self.trace.stderr),
            )
        if self.eigenvalues is not None:
            yield "eigenvalues", ", ".join(f"{value:.4g}" for value in self.eigenvalues.values.tolist())
        if self.density is not None:
            number = self.num_large
            yield "density", f"{plus_minus(number.value, number.stderr)} eigenvalues beyond 1 % of the largest"
        if self.layers is not None:
            first = sorted(self.layers, key=lambda layer: abs(layer.share), reverse=True)[:3]
            shares = [f"{layer.name} {100 * layer.share:.3g} %" for layer in first if math.isfinite(layer.share)]
            yield "layers", ", ".join([*shares, "..."]) if shares else "no shares of a trace that is zero"
        if self.gap is not None:
            yield "gap", f"{plus_minus(self.gap.value, self.gap.stderr)} at sigma={self.gap.sigma:g}"


KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Measurement,
        Estimate,
        TraceEstimate,
        EigenPairs,
        SpectralDensity,
        LayerwiseResult,
        Layer,
        GapEstimate,
        Layout,
    )
}
"""The classes that a record of a measurement is made of."""
