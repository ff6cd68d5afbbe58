"""Operators made of operators: sums, differences and multiples, diagonal blocks, and projections."""

from __future__ import annotations

from functools import reduce
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatmin.curvature.layout import Layout
from flatmin.curvature.operators.base import Operator
from flatmin.curvature.operators.protocol import LinearOperator, dimension, forms
from flatmin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sum(Operator):
    """A linear combination of operators on the same parameters, as ``H - G`` and ``0.5 * H`` make it.

    Args:
        terms: Factors and operators.

    Example:
        >>> A, B = torch.eye(2), torch.ones(2, 2)
        >>> Sum([(2.0, A), (-1.0, B)]) @ torch.tensor([1.0, 0.0])
        tensor([ 1., -1.])
    """

    def __init__(self, terms: Sequence[tuple[float, LinearOperator]]) -> None:
        for factor, _ in terms:
            if isinstance(factor, bool) or not isinstance(factor, Real):
                raise ArgumentTypeError(f"an operator was multiplied by {factor!r}, but a number is needed. Use @.")
        self._terms = [(float(factor), operator) for factor, operator in terms]
        first = terms[0][1]
        d = dimension(first)
        for _, operator in terms[1:]:
            if dimension(operator) != d:
                raise ArgumentError(
                    f"operators of dimension {d} and {dimension(operator)} were added. Both must act on the same "
                    "parameters: were some frozen in between?"
                )
        self.shape: tuple[int, int] = (d, d)
        own = (operator.layout for _, operator in terms if isinstance(operator, Operator))
        self.layout: Layout = next(own, Layout({"": torch.Size([d])}))
        self.dtype: torch.dtype = reduce(torch.promote_types, (operator.dtype for _, operator in terms))
        self.device: torch.device = first.device
        self.multiplies: bool = all(getattr(operator, "multiplies", True) for _, operator in terms)

    @classmethod
    def of(cls, *terms: tuple[float, LinearOperator]) -> Sum:
        """Return the sum of ``terms``, those that are sums themselves being opened."""
        flat: list[tuple[float, LinearOperator]] = []
        for factor, operator in terms:
            inner = operator._terms if isinstance(operator, Sum) else [(1.0, operator)]
            flat += [(factor * weight, part) for weight, part in inner]
        return cls(flat)

    @property
    def parts(self) -> tuple[Operator, ...]:
        """The operators that really compute, each once."""
        found = [part for _, o in self._terms if isinstance(o, Operator) for part in o.parts]
        return tuple(dict.fromkeys(found))

    def __repr__(self) -> str:
        """Show the combination."""
        return " + ".join(f"{factor:g} * {operator!r}" for factor, operator in self._terms)

    def quadratic_forms(self, block: Tensor) -> Tensor:
        """Return x'Ax for every column x of ``block`` (d, m), shape (m,): the sum of the terms' own."""
        terms = [factor * forms(operator, block).to(self.device) for factor, operator in self._terms]
        return torch.stack(terms).sum(0)

    def _multiply(self, columns: Tensor) -> Tensor:
        total = torch.zeros_like(columns)
        for factor, operator in self._terms:
            total.add_((operator @ columns.to(operator.dtype)).to(self.device, self.dtype), alpha=factor)
        return total


class Block(Operator):
    """The diagonal block of an operator that belongs to some of the parameters: ``H.block("layer1.*")``.

    A product costs one with the whole operator.

    Args:
        operator: The whole.
        names: Parameters of the block, in the order of the whole.
    """

    def __init__(self, operator: Operator, names: Sequence[str]) -> None:
        self._operator = operator
        self.layout: Layout = Layout({name: operator.layout.shapes[name] for name in names})
        self.shape: tuple[int, int] = (self.layout.numel, self.layout.numel)
        self.dtype: torch.dtype = operator.dtype
        self.device: torch.device = operator.device
        self.multiplies: bool = operator.multiplies

    @property
    def parts(self) -> tuple[Operator, ...]:
        """The operators that really compute."""
        return self._operator.parts

    def __repr__(self) -> str:
        """Show which block of what it is."""
        return f"Block({self._operator!r}, {', '.join(self.layout.shapes)})"

    def quadratic_forms(self, block: Tensor) -> Tensor:
        """Return x'Ax for every column x of ``block`` (d, m), shape (m,): those of the whole."""
        return self._operator.quadratic_forms(self._embed(block))

    def _multiply(self, columns: Tensor) -> Tensor:
        image = self._operator @ self._embed(columns)
        return torch.cat([image[place] for place in self._places])

    def _embed(self, columns: Tensor) -> Tensor:
        whole = columns.new_zeros(self._operator.shape[0], *columns.shape[1:])
        for place, part in zip(self._places, columns.split(self.layout.sizes), strict=True):
            whole[place] = part
        return whole

    @property
    def _places(self) -> list[slice]:
        return [self._operator.layout.slices[name] for name in self.layout.shapes]


class Projection(Operator):
    """P A P with the orthogonal projection P onto the span of some vectors, or onto its complement.

    Args:
        operator: A.
        basis: Vectors as columns, (d, m); made orthonormal here.
        complement: Project onto what is orthogonal to all of them.

    Raises:
        ArgumentError: ``basis`` has another number of rows, or linearly dependent columns.
    """

    def __init__(self, operator: Operator, basis: Tensor, *, complement: bool = False) -> None:
        if basis.dim() != 2 or basis.shape[0] != operator.shape[0] or basis.shape[1] > basis.shape[0]:
            raise ArgumentError(
                f"the basis has shape {tuple(basis.shape)}, but ({operator.shape[0]}, m) is needed, m columns of the "
                "operator's dimension. One vector v goes in as v[:, None]."
            )
        self.layout: Layout = operator.layout
        self.shape: tuple[int, int] = operator.shape
        self.dtype: torch.dtype = operator.dtype
        self.device: torch.device = operator.device
        self.multiplies: bool = operator.multiplies
        self._operator, self._complement = operator, complement
        self._basis, upper = torch.linalg.qr(basis.to(self.device, self.dtype))
        pivots = upper.diagonal().abs()
        if pivots.numel() and not float(pivots.min()) > 10 * torch.finfo(self.dtype).eps * float(pivots.max()):
            raise ArgumentError("the columns of the basis are linearly dependent, or hold NaN. Leave some out.")

    @property
    def parts(self) -> tuple[Operator, ...]:
        """The operators that really compute."""
        return self._operator.parts

    def __repr__(self) -> str:
        """Show what is projected onto what."""
        onto = "the complement of " if self._complement else ""
        return f"Projection({self._operator!r} onto {onto}{self._basis.shape[1]} vectors)"

    def quadratic_forms(self, block: Tensor) -> Tensor:
        """Return x'Ax for every column x of ``block`` (d, m), shape (m,): those of the whole, of its projection."""
        return self._operator.quadratic_forms(self._project(block.to(self.device, self.dtype)))

    def _multiply(self, columns: Tensor) -> Tensor:
        return self._project(self._operator @ self._project(columns))

    def _project(self, columns: Tensor) -> Tensor:
        inside = self._basis @ (self._basis.T @ columns)
        return columns - inside if self._complement else inside
