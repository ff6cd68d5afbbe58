"""The parameters of a model as one vector: sparse over positions, lazy about nothing.

A flow (``flatmin.perturb``) does arithmetic with gradients and displacements; this is the type it does it with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

Total = Callable[[Mapping[int, Tensor]], Tensor]

PIECE = 2**16
"""Elements for each thread of a CPU that are worked on at a time: a few arrays of them fit the cache of a core."""


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class PerParameter(Generic[T_co]):
    """One value for each parameter position: what a hyperparameter becomes when parameters differ in it."""

    values: tuple[T_co, ...]

    def __getitem__(self, position: int) -> T_co:
        return self.values[position]

    def __neg__(self: PerParameter[float]) -> PerParameter[float]:
        return PerParameter(tuple(-value for value in self.values))


Scale = float | PerParameter[float]

U = TypeVar("U", int, float, str)


def value_for(value: U | PerParameter[U], position: int) -> U:
    """Return what ``value`` is for ``position``."""
    return value[position] if isinstance(value, PerParameter) else value


def is_zero(scale: Scale) -> bool:
    """Tell whether ``scale`` vanishes everywhere."""
    return not any(scale.values) if isinstance(scale, PerParameter) else scale == 0


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest float of ``device``, in which long sums are taken.

    A float32 sum of squares over 11 million elements is off by 7e-4, over 85 million by more than a percent.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def has_16_bits(tensors: Iterable[Tensor]) -> bool:
    """Tell whether any of ``tensors`` has numbers of 16 bits or fewer."""
    return any(tensor.dtype.itemsize < 4 for tensor in tensors)


def plain_total(parts: Mapping[int, Tensor]) -> Tensor:
    """Return the sum of 0-dim tensors, on the device of the first; zero for none."""
    values = list(parts.values())
    if not values:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([value.to(values[0].device) for value in values]).sum()


def dense(tensor: Tensor) -> Tensor:
    """Return ``tensor``, made dense if it is sparse."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def is_plain(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is one run of 32-bit or 64-bit floats in a CPU's memory."""
    is_float = tensor.dtype in (torch.float32, torch.float64) and tensor.device.type == "cpu"
    return is_float and tensor.layout == torch.strided and tensor.is_contiguous()


def _plain_dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of plain tensors (0-dim, double), piece by piece while these are in the cache.

    Sums of pieces, which torch takes pairwise, are in the tensors' own type and were off by at most 4 parts in 10⁷;
    torch's sums in double take twice as long.
    """
    length = PIECE * torch.get_num_threads()
    if left.numel() <= length:
        return torch.mul(left, right).sum().double()
    room = left.new_empty(length)
    pieces = zip(left.view(-1).split(length), right.view(-1).split(length), strict=True)
    return torch.stack([torch.mul(a, b, out=room[: len(a)]).sum() for a, b in pieces]).sum(dtype=torch.float64)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


class Vector:
    """An element of parameter space: tensors by position, absent positions being zero.

    A product with a number is not carried out before its coordinates are asked for: scaling an ascent step by its
    length costs no pass over the weights, and no memory, where it is added to them right away.

    Args:
        tensors: Position of a parameter to a tensor of its shape (of its local shard's shape where it is sharded).
        total: Adds the partial sums of an inner product; the sharded driver adds them over ranks as well.
        factor: A number that ``tensors`` are still to be multiplied by.

    Example:
        >>> g = Vector({0: torch.tensor([3.0, 4.0])})
        >>> (0.5 * g.unit()).tensors
        {0: tensor([0.3000, 0.4000])}
    """

    __slots__ = ("_factor", "_tensors", "total")

    def __init__(
        self, tensors: Mapping[int, Tensor], total: Total = plain_total, *, factor: float | Tensor | None = None
    ) -> None:
        self._tensors: dict[int, Tensor] = dict(tensors)
        self._factor = factor
        self.total: Total = total

    @property
    def tensors(self) -> dict[int, Tensor]:
        """The coordinates, by position."""
        if self._factor is not None:
            scaled = _scaled(list(self._tensors.values()), self._factor)
            self._tensors, self._factor = dict(zip(self._tensors, scaled, strict=True)), None
        return self._tensors

    def __add__(self, other: Vector | Scale) -> Vector:
        if not isinstance(other, Vector):  # a number is added to every coordinate that is there
            numbers = [value_for(other, i) for i in self.tensors]
            return self._like(torch._foreach_add(list(self.tensors.values()), numbers)) if numbers else self
        shared = [i for i in self.tensors if i in other.tensors]
        if not shared:
            return Vector(self.tensors | other.tensors, self.total)
        sums = torch._foreach_add([self.tensors[i] for i in shared], [other.tensors[i] for i in shared])
        return Vector(self.tensors | other.tensors | dict(zip(shared, sums, strict=True)), self.total)

    def __radd__(self, other: object) -> Vector:
        # `total = 0; total += g` is how papers write a sum.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def _like(self, tensors: Iterable[Tensor]) -> Vector:
        return Vector(dict(zip(self.tensors, tensors, strict=True)), self.total)

    def __neg__(self) -> Vector:
        return -1.0 * self

    def __abs__(self) -> Vector:
        return self._like(torch._foreach_abs(list(self.tensors.values()))) if self.tensors else self

    def sqrt(self) -> Vector:
        """Return the square root of every coordinate."""
        return self._like(torch._foreach_sqrt(list(self.tensors.values()))) if self.tensors else self

    def __sub__(self, other: Vector) -> Vector:
        return self + -other

    def __mul__(self, scale: Vector | Scale | Tensor) -> Vector:
        """Multiply by a number, by one for each parameter, or coordinate by coordinate by another vector."""
        if not self._tensors:
            return self
        if isinstance(scale, Vector):
            shared = [i for i in self.tensors if i in scale.tensors]
            if not shared:
                return Vector({}, self.total)
            products = torch._foreach_mul([self.tensors[i] for i in shared], [scale.tensors[i] for i in shared])
            return Vector(dict(zip(shared, products, strict=True)), self.total)
        if isinstance(scale, PerParameter):
            return self._like(torch._foreach_mul(list(self.tensors.values()), [scale[i] for i in self.tensors]))
        number = scale if isinstance(scale, Tensor) else float(scale)
        return Vector(self._tensors, self.total, factor=number if self._factor is None else self._factor * number)

    __rmul__ = __mul__

    def __truediv__(self, scale: Vector | float | Tensor) -> Vector:
        if isinstance(scale, Vector):
            return self * Vector({i: tensor.reciprocal() for i, tensor in scale.tensors.items()})
        return self * (1.0 / scale)

    def inner_parts(self, other: Vector) -> dict[int, Tensor]:
        """Return the inner products with ``other``, one for each shared position (0-dim, in double precision)."""
        shared = [i for i in self.tensors if i in other.tensors]
        if not shared:
            return {}
        plain = {i for i in shared if is_plain(self.tensors[i]) and is_plain(other.tensors[i])}
        parts = {i: _plain_dot(self.tensors[i], other.tensors[i]) for i in plain}
        if others := [i for i in shared if i not in plain]:
            # A sparse gradient may meet a dense perturbation, and products of 16-bit numbers underflow.
            mine, theirs = ([_wide(dense(v.tensors[i])) for i in others] for v in (self, other))
            products = torch._foreach_mul(mine, theirs)
            parts |= {i: p.sum(dtype=accumulation_dtype(p.device)) for i, p in zip(others, products, strict=True)}
        return {i: parts[i] for i in shared}

    def dot(self, other: Vector) -> Tensor:
        """Return the inner product with ``other`` over all parameters (0-dim, on the device)."""
        return self.total(self.inner_parts(other))

    def norm(self) -> Tensor:
        """Return the Euclidean norm over all parameters (0-dim, on the device)."""
        if self._factor is not None:
            return Vector(self._tensors, self.total).norm() * abs(self._factor)
        tensors = list(self.tensors.values())
        if all(map(is_plain, tensors)) or any(tensor.layout != torch.strided for tensor in tensors):
            return self.dot(self).sqrt()
        norms = torch._foreach_norm(tensors, 2.0, accumulation_dtype(tensors[0].device))
        return self.total({i: norm.square() for i, norm in zip(self.tensors, norms, strict=True)}).sqrt()

    def unit(self) -> Vector:
        """Return the vector of length one in this direction; the zero vector stays zero."""
        length = self.norm()
        return self * torch.where(length == 0, length, 1.0 / length)

    def orthogonal_to(self, other: Vector) -> Vector:
        """Return this vector without its component along ``other``; all of it if ``other`` is zero."""
        square = other.dot(other)
        return self - other * torch.where(square == 0, square, self.dot(other) / square)

    def add_to_(self, targets: Mapping[int, Tensor]) -> None:
        """Add this vector to ``targets`` (by position) in place."""
        own = self._tensors.values()
        if any(tensor.layout != torch.strided for tensor in own):
            for i, tensor in self.tensors.items():
                targets[i].add_(tensor)
        elif self._tensors:
            here, factor = [targets[i] for i in self._tensors], self._factor
            # A number that lives on an accelerator cannot be told without waiting for it, and 16 bits do not hold it.
            if factor is None or has_16_bits(own) or (isinstance(factor, Tensor) and factor.device.type != "cpu"):
                torch._foreach_add_(here, list(self.tensors.values()))
            else:
                torch._foreach_add_(here, list(own), alpha=float(factor))


def _scaled(tensors: list[Tensor], factor: float | Tensor) -> Sequence[Tensor]:
    """Return ``factor`` times ``tensors``; a number that lives on a device stays there, and promotes nothing."""
    if not isinstance(factor, Tensor):
        return torch._foreach_mul(tensors, factor)
    first = tensors[0]
    if first.dtype.itemsize >= 4 and all(t.device == first.device and t.dtype == first.dtype for t in tensors):
        return torch._foreach_mul(tensors, factor.to(first.device, first.dtype))
    # In 16 bits the number itself, such as 1/|g|, may overflow where the product does not.
    return [(_wide(t) * factor.to(t.device, _wide(t).dtype)).to(t.dtype) for t in tensors]
