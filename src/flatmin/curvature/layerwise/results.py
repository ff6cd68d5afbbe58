"""What there is to tell of each layer, and of all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flatmin.curvature.results import Estimate, Measured, plus_minus
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer's part.

    Attributes:
        name: Of the layer.
        parameters: Names of its parameters.
        size: Number of its coordinates.
        value: Of the quantity for the layer's diagonal block.
        stderr: Standard error of ``value``; for eigenvalues the residual; NaN where there is none.
        share: Of the whole, where layers add up to one (traces); NaN otherwise.
        share_stderr: Standard error of ``share``.
        estimate: What the estimator returned for the block.
    """

    name: str
    parameters: tuple[str, ...]
    size: int
    value: float
    stderr: float
    share: float = math.nan
    share_stderr: float = math.nan
    estimate: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerwiseResult(Measured):
    """One row a layer, in the order of the parameters; see :class:`Measured` for what it cost. Prints as a table.

    Attributes:
        quantity: What was measured.
        layers: The rows.
        whole: The quantity of the whole operator, where it comes out of the same products (traces); else None.

    Example:
        >>> rows = [Layer(name=n, parameters=(n,), size=4, value=v, stderr=0.1, share=v / 4, share_stderr=0.02)
        ...         for n, v in (("stem", 1.0), ("head", 3.0))]
        >>> result = LayerwiseResult(quantity="trace", layers=tuple(rows), num_matvecs=50, gradients=101.0,
        ...                          whole=Estimate(value=4.0, stderr=0.14))
        >>> result
        LayerwiseResult(trace of 2 layers, 50 matvecs = 101 gradients)
        >>> print(result)
        layer  size        trace         share
        stem      4  1.00 ± 0.10  25.0 ± 2.0 %
        head      4  3.00 ± 0.10  75.0 ± 2.0 %
        whole     8  4.00 ± 0.14
        50 matvecs = 101 gradients
        >>> result["head"].share
        0.75
    """

    quantity: str
    layers: tuple[Layer, ...]
    whole: Estimate | None = None

    def __iter__(self) -> Iterator[Layer]:
        """Yield the rows."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    def __getitem__(self, key: str | int) -> Layer:
        """Return the layer of that name or place.

        Raises:
            ArgumentError: There is none.
        """
        if isinstance(key, int):
            return self.layers[key]
        for layer in self.layers:
            if layer.name == key:
                return layer
        raise ArgumentError(
            f"there is no layer {key!r}. There are {', '.join(repr(layer.name) for layer in self.layers)}."
        )

    def __repr__(self) -> str:
        """Say what this is in one line."""
        return f"LayerwiseResult({self.quantity} of {len(self)} layers, {self.cost()})"

    def __str__(self) -> str:
        """Write the table."""
        shares = any(math.isfinite(layer.share) for layer in self.layers)
        rows = [["layer", "size", self.quantity, *(["share"] if shares else [])]]
        for layer in self.layers:
            share = [f"{plus_minus(100 * layer.share, 100 * layer.share_stderr)} %"] if shares else []
            rows.append([layer.name, f"{layer.size}", plus_minus(layer.value, layer.stderr), *share])
        if self.whole is not None:
            total = sum(layer.size for layer in self.layers)
            last = [""] if shares else []
            rows.append(["whole", f"{total}", plus_minus(self.whole.value, self.whole.stderr), *last])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )
        return "\n".join([*lines, self.cost()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and names, without samples, such as ``json`` writes."""
        names = ("name", "parameters", "size", "value", "stderr", "share", "share_stderr")
        return {
            "quantity": self.quantity,
            "layers": [{name: _plain(getattr(layer, name)) for name in names} for layer in self.layers],
            "whole": None if self.whole is None else {"value": self.whole.value, "stderr": self.whole.stderr},
            "num_matvecs": self.num_matvecs,
            "gradients": self.gradients,
            "seed": self.seed,
            "route": self.route,
            "converged": self.converged,
        }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
