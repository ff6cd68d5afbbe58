"""What an estimator asks of an operator: anything with ``shape``, ``dtype``, ``device`` and ``@`` is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class LinearOperator(Protocol):
    """A square linear map; a dense ``torch.Tensor`` of shape (d, d) is one."""

    @property
    def shape(self) -> Sequence[int]:
        """(d, d)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors it takes and gives."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of these vectors."""
        ...

    def __matmul__(self, block: Tensor, /) -> Tensor:
        """Return the product with a vector (d,) or a block of vectors (d, m), of the same shape."""
        ...


def forms(operator: LinearOperator, block: Tensor) -> Tensor:
    """Return x'Ax for every column x of ``block`` (d, m), shape (m,), in float64, by the operator's own way if any."""
    own = getattr(operator, "quadratic_forms", None)
    block = block.to(operator.dtype)
    if own is not None:
        return own(block)
    return torch.sum(block * (operator @ block), dim=0, dtype=accumulation_dtype(operator.device))


def dimension(operator: LinearOperator) -> int:
    """Return d of a (d, d) operator.

    Raises:
        ArgumentError: It is not square, or empty.
        ArgumentTypeError: It is no operator, or one of integers or complex numbers.
    """
    missing = [name for name in ("shape", "dtype", "device", "__matmul__") if not hasattr(operator, name)]
    if missing:
        raise ArgumentTypeError(
            f"the operator is a {type(operator).__name__} without {', '.join(missing)}. Pass Hessian(model, loss_fn, "
            "batches), a matrix as torch.Tensor, or an object with shape, dtype, device and @."
        )
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ArgumentError(f"the operator has shape {shape}, but it must be square, (d, d) with d at least 1.")
    if not operator.dtype.is_floating_point:
        raise ArgumentTypeError(
            f"the operator has dtype {operator.dtype}, but a real floating type is needed: .float()."
        )
    return shape[0]
