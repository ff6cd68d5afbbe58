r"""Norms of the gradients of single examples, without the gradients.

The gradient that example n gives to a weight matrix is a sum of outer products over positions, :math:`L_n^\top R_n`,
with L (positions, rows) and R (positions, columns). Its squared norm is :math:`\langle L L^\top, R R^\top \rangle`, two
Gram matrices of positions, of which the one made of inputs is the same for every cotangent (Goodfellow 2015 for one
position; Rochette, Manoel and Tramel 2019; Li, Tramer, Liang and Hashimoto 2022). Where there are more positions than
columns it is cheaper to form the product itself, a few examples at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CHUNK = {"cpu": 2**22}  # bytes that a chunk of examples may take: what fits a cache
_CHUNK_ELSEWHERE = 2**28


def chunks(size: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of the examples, each as long as its temporary tensors may take."""
    step = max(1, _CHUNK.get(device.type, _CHUNK_ELSEWHERE) // max(1, bytes_each))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def squares(tensor: Tensor) -> Tensor:
    """Return the sum of squares of each of the first dimension's entries, in float64 beyond the last dimension."""
    rows = torch.linalg.vector_norm(tensor.flatten(1, -2) if tensor.dim() > 2 else tensor.unsqueeze(1), dim=-1)
    return rows.double().square_().sum(1)


class Form(Protocol):
    """How the gradients of single examples for one use of a parameter come from the cotangent of its node.

    Attributes:
        work: Multiplications for the norms of one example, about.
        weight_work: Those of the ordinary gradient.
    """

    work: float
    weight_work: float

    def norms(self, cotangents: list[Tensor]) -> Tensor:
        """Return the squared norms, shape (cotangents, examples), float64."""
        ...

    def gradients(self, cotangent: Tensor, examples: slice) -> Tensor:
        """Return the gradients themselves of a few examples, (examples, coordinates), in the order of the parameter."""
        ...


@dataclass
class Direct:
    """Small gradients, formed as they are: biases, scales, positions.

    Attributes:
        gradient: Maps a cotangent to the gradients of all examples, (examples, ...).
    """

    gradient: Callable[[Tensor], Tensor]
    work: float = 0.0
    weight_work: float = 0.0

    def norms(self, cotangents: list[Tensor]) -> Tensor:
        """See :class:`Form`."""
        norms = [torch.linalg.vector_norm(self.gradient(c).flatten(1), dim=1) for c in cotangents]
        return torch.stack(norms).double().square_()

    def gradients(self, cotangent: Tensor, examples: slice) -> Tensor:
        """See :class:`Form`."""
        return self.gradient(cotangent)[examples].flatten(1)


@dataclass
class Rows:
    """One side of a sum of outer products, (examples, groups, positions, coordinates).

    Attributes:
        groups: Number of groups, which have separate weights.
        positions: Positions of one example.
        width: Coordinates.
        read: Returns them for a slice of the examples; given the cotangent, if they are made of it.
        moving: Whether they are made of the cotangent.
    """

    groups: int
    positions: int
    width: int
    read: Callable[[Tensor | None, slice], Tensor]
    moving: bool

    def gram(self, cotangent: Tensor | None, examples: slice) -> Tensor:
        """Return the inner products of positions, (examples, groups, positions, positions)."""
        rows = self.read(cotangent, examples)
        if self.positions == 1:  # a batch of products of vectors is slow
            return torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_()
        return rows @ rows.mT

    def lengths(self, cotangent: Tensor | None, examples: slice) -> Tensor:
        """Return the lengths of rows that are the only ones of their example, (examples,)."""
        return torch.linalg.vector_norm(self.read(cotangent, examples), dim=-1).flatten()


@dataclass
class Outer:
    """A weight matrix: left rows times right rows, summed over positions.

    Attributes:
        left: The rows of the weight's first dimension.
        right: Those of the others.
        size: The number of examples.
        dtype: In which to compute.
        device: Where.
        budget: Bytes that the Gram matrices of the inputs may take.
        onehot: The only nonzero entry of each left row, (examples, positions), if they are such: embeddings.
    """

    left: Rows
    right: Rows
    size: int
    dtype: torch.dtype
    device: torch.device
    budget: int
    onehot: Tensor | None = None
    _fixed_gram: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        groups, s = self.left.groups, self.left.positions
        fixed, moving = (self.right, self.left) if self.left.moving else (self.left, self.right)
        self._fixed, self._moving = fixed, moving
        self.weight_work: float = float(groups * s * self.left.width * self.right.width)
        gram = float(groups * s * s * (moving.width + 4))
        self.memory: int = self.size * groups * s * s * self.dtype.itemsize
        product = groups * self.left.width * self.right.width * self.dtype.itemsize  # what the other way takes at once
        affordable = self.memory <= max(self.budget, product)
        self.by_gram: bool = self.onehot is not None or (gram < 1.2 * self.weight_work and affordable)
        self.work: float = gram if self.by_gram else self.weight_work

    def norms(self, cotangents: list[Tensor]) -> Tensor:
        """See :class:`Form`."""
        return self._norms_by_gram(cotangents) if self.by_gram else self._norms_by_product(cotangents)

    def _norms_by_gram(self, cotangents: list[Tensor]) -> Tensor:
        parts = []
        each = self.left.groups * self.left.positions * (2 * self.left.positions + self._moving.width)
        alone = self.left.positions == self.left.groups == 1  # one product of two rows
        for examples in chunks(self.size, 4 * each * self.dtype.itemsize, self.device):
            fixed = self._gram(examples)
            if alone:
                lengths = torch.stack([self._moving.lengths(c, examples) for c in cotangents])
                parts.append(lengths.double().square_().mul_(fixed.flatten()))
                continue
            parts.append(
                torch.stack([(self._moving.gram(c, examples) * fixed).flatten(1).sum(1).double() for c in cotangents])
            )
        return torch.cat(parts, dim=1)

    def _gram(self, examples: slice) -> Tensor:
        """Return the Gram matrices of the side that is the same for all cotangents, kept if they may be."""
        if self._fixed_gram is None:
            parts = []
            each = self._fixed.groups * self._fixed.positions * (self._fixed.width + self._fixed.positions)
            for some in chunks(self.size, each * self.dtype.itemsize, self.device):
                if self.onehot is not None:
                    index = self.onehot[some]
                    parts.append((index[:, :, None] == index[:, None, :])[:, None].to(self.dtype))
                else:
                    parts.append(self._fixed.gram(None, some))
            self._fixed_gram = torch.cat(parts)
        return self._fixed_gram[examples]

    def _norms_by_product(self, cotangents: list[Tensor]) -> Tensor:
        k, s, parts = len(cotangents), self.left.positions, []
        each = self.left.groups * (self._fixed.width * (s + k * self._moving.width) + k * s * self._moving.width)
        for examples in chunks(self.size, each * self.dtype.itemsize, self.device):
            fixed = self._fixed.read(None, examples)
            moving = torch.cat([self._moving.read(c, examples) for c in cotangents], dim=-1)
            rows = torch.linalg.vector_norm(moving.mT @ fixed, dim=-1).double().square_()  # (n, groups, k * width)
            parts.append(rows.unflatten(-1, (k, -1)).sum((1, 3)).T)
        return torch.cat(parts, dim=1)

    def gradients(self, cotangent: Tensor, examples: slice) -> Tensor:
        """See :class:`Form`."""
        right = self.right.read(cotangent, examples)
        if self.onehot is None:
            return (self.left.read(cotangent, examples).mT @ right).flatten(1)
        index, right = self.onehot[examples], right[:, 0]
        total = right.new_zeros(len(index), self.left.width, right.shape[-1])
        return total.scatter_add_(1, index[..., None].expand_as(right), right).flatten(1)

    def inner(self, other: Outer, cotangents: Sequence[Tensor], examples: slice) -> Tensor:
        """Return the inner products of this use's gradients with those of another use of the same weight."""
        right = self.right.read(cotangents[0], examples) @ other.right.read(cotangents[1], examples).mT
        return (self._left_inner(other, cotangents, examples) * right).flatten(1).sum(1).double()

    def _left_inner(self, other: Outer, cotangents: Sequence[Tensor], examples: slice) -> Tensor:
        if self.onehot is None and other.onehot is not None:
            return other._left_inner(self, cotangents[::-1], examples).mT
        if self.onehot is None:
            return self.left.read(cotangents[0], examples) @ other.left.read(cotangents[1], examples).mT
        index = self.onehot[examples]
        if other.onehot is not None:
            return (index[:, :, None] == other.onehot[examples][:, None, :])[:, None].to(self.dtype)
        rows = other.left.read(cotangents[1], examples)[:, 0]  # (n, positions there, coordinates)
        picked = rows.gather(2, index[:, None, :].expand(-1, rows.shape[1], -1))
        return picked.mT[:, None]
