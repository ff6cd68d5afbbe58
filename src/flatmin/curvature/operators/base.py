"""The base of flatmin's own operators: what one product makes possible, and what each has cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from flatmin.curvature.operators.scipy import as_scipy
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from flatmin.curvature.layout import Layout
    from flatmin.curvature.operators.algebra import Block, Projection, Sum
    from flatmin.curvature.operators.protocol import LinearOperator


class Operator(ABC):
    """A symmetric linear map on the trainable parameters of a model, known by its products alone.

    ``A @ x`` takes a vector (d,), a block of vectors (d, m), or named tensors (missing names count as zero), and gives
    the same kind. Operators add, subtract and scale: ``H - G``, ``0.5 * (H + F)``.

    Attributes:
        layout: Splits a flat vector into named tensors and back.
        shape: (d, d).
        dtype: Type of the vectors.
        device: Device of the vectors.
        multiplies: Whether it has products; without them, ``quadratic_forms`` is all it has.
    """

    multiplies: bool = True

    layout: Layout
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def _multiply(self, columns: Tensor) -> Tensor:
        """Return the products with ``columns`` (d, m), which are finite, in ``dtype`` and on ``device``, as new."""

    @property
    def parts(self) -> tuple[Operator, ...]:
        """The operators that this one is made of and that really compute: itself, if it is made of none."""
        return (self,)

    @property
    def gradients(self) -> float:
        """What was spent on products so far, in gradients of all the data; see :class:`RiskOperator`."""
        return sum({part.meter: part.gradients for part in self.parts if part is not self}.values())

    @property
    def meter(self) -> object:
        """What counts: operators with one meter report the same ``gradients``."""
        return self

    @property
    def route(self) -> str:
        """How products are computed, in a few words."""
        return ", ".join(dict.fromkeys(part.route for part in self.parts if part is not self and part.route))

    @contextmanager
    def session(self) -> Iterator[None]:
        """Inside this context several products are cheaper: what they share is kept, as far as memory allows."""
        with ExitStack() as stack:
            for part in self.parts:
                if part is not self:
                    stack.enter_context(part.session())
            yield

    def quadratic_forms(self, block: Tensor) -> Tensor:
        """Return x'Ax for every column x of ``block`` (d, m), shape (m,), summed in float64."""
        return torch.sum(block * (self @ block), dim=0, dtype=accumulation_dtype(self.device))

    @overload
    def __matmul__(self, vector: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __matmul__(self, vector: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Return the product with ``vector``, of the same kind, in ``dtype``.

        Raises:
            ArgumentError: It has another shape or other names, or is not finite.
            ArgumentTypeError: It is neither a tensor nor a mapping of tensors.
        """
        if isinstance(vector, Mapping):
            return self.layout.split(self @ self.layout.flatten(vector))
        self._check(vector)
        with torch.inference_mode(mode=False):
            return self._multiply(self._columns(vector)).reshape(vector.shape)

    def _columns(self, vector: Tensor) -> Tensor:
        """Return ``vector`` as a block (d, m), each column in one piece: passes read one at a time, again and again."""
        columns = vector.detach().to(self.device, self.dtype, copy=vector.is_inference())
        return columns.reshape(self.shape[0], -1).T.contiguous().T

    def _check(self, vector: Any) -> None:
        name, d = type(self).__name__, self.shape[0]
        if not isinstance(vector, Tensor):
            raise ArgumentTypeError(
                f"the {name} was multiplied by a {type(vector).__name__}, but a tensor or named tensors are needed."
            )
        if vector.dim() not in (1, 2) or vector.shape[0] != d:
            raise ArgumentError(
                f"the vector has shape {tuple(vector.shape)}, but the {name} acts on {d} trainable parameters: "
                f"({d},) or ({d}, m) is needed. Named tensors do as well: A @ {{'layer.weight': ...}}; "
                "A.layout.flatten(named tensors) makes a vector of them."
            )
        if not all_finite(vector):
            raise ArgumentError("the vector holds NaN or infinity, so the product would too. Look where it came from.")

    def __add__(self, other: LinearOperator) -> Sum:
        return _algebra().Sum.of((1.0, self), (1.0, other))

    def __sub__(self, other: LinearOperator) -> Sum:
        return _algebra().Sum.of((1.0, self), (-1.0, other))

    def __mul__(self, factor: float) -> Sum:
        return _algebra().Sum.of((factor, self))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Sum:
        return self * (1.0 / divisor)

    def __neg__(self) -> Sum:
        return self * -1.0

    def block(self, *patterns: str) -> Block:
        """Return the diagonal block of the parameters whose names fit one of ``patterns``.

        Args:
            patterns: Names, or patterns in the manner of a shell: ``"layer1.*"``, ``"*.bias"``.

        Raises:
            ArgumentError: A pattern fits no parameter.
        """
        return _algebra().Block(self, self.layout.matching(*patterns))

    def projected(self, basis: Tensor, *, complement: bool = False) -> Projection:
        """Return P A P with P the orthogonal projection onto the span of ``basis`` (d, m), or onto its complement.

        Raises:
            ArgumentError: ``basis`` has another number of rows, or linearly dependent columns.
        """
        return _algebra().Projection(self, basis, complement=complement)

    def to_scipy(self) -> Any:
        """Return it as a ``scipy.sparse.linalg.LinearOperator`` over numpy arrays.

        Raises:
            ModuleNotFoundError: scipy is not installed.
        """
        return as_scipy(self)


def all_finite(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` holds neither NaN nor infinity: one sum tells, unless it overflows."""
    total = float(tensor.sum())
    return total - total == 0.0 or bool(tensor.isfinite().all())


def _algebra() -> ModuleType:
    from flatmin.curvature.operators import algebra  # noqa: PLC0415  (what is made of operators is one itself)

    return algebra
