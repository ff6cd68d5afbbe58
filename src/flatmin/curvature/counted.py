"""An operator as estimators see it: checked, its products counted, its cost known."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from flatmin.curvature.journal import current
from flatmin.curvature.operators.protocol import LinearOperator, dimension, forms
from flatmin.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor


class Counted:
    """Multiplies by an operator and keeps the account; an open :class:`Journal` is asked first.

    Args:
        operator: Anything with ``shape`` (d, d), ``dtype``, ``device`` and ``@``.

    Attributes:
        operator: The operator.
        d: Its dimension.
        dtype: Type of its vectors.
        device: Device of its vectors.
        num_matvecs: Products so far.
        recalled: Gradients that answers from a journal had cost: they are spent, but not now.

    Raises:
        ArgumentError: It is not square, or empty.
        ArgumentTypeError: It is no operator, or one of integers or complex numbers.

    Example:
        >>> import torch
        >>> A = Counted(torch.eye(3))
        >>> _ = A.products(torch.ones(3, 5))
        >>> A.cost()
        {'num_matvecs': 5, 'gradients': None, 'route': ''}
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.d: int = dimension(operator)
        self.dtype: torch.dtype = operator.dtype
        self.device: torch.device = operator.device
        self.num_matvecs: int = 0
        self._before: float | None = getattr(operator, "gradients", None)
        self.recalled: float = 0.0

    def products(self, block: Tensor) -> Tensor:
        """Return the products with the columns of ``block`` (d, m).

        Raises:
            NonFiniteError: One is not finite.
        """
        self.num_matvecs += block.shape[1]
        block = block.to(self.dtype)
        return self._answer("products", block, lambda: self.operator @ block)

    def forms(self, block: Tensor) -> Tensor:
        """Return x'Ax for every column x of ``block`` (d, m), shape (m,), in float64; each counts as a product.

        An operator with ``quadratic_forms`` is asked for them, which may be cheaper than products.

        Raises:
            NonFiniteError: One is not finite.
        """
        self.num_matvecs += block.shape[1]
        block = block.to(self.dtype)
        return self._answer("forms", block, lambda: forms(self.operator, block))

    def session(self) -> AbstractContextManager[Any]:
        """Return the context in which several products are cheaper, if the operator has one."""
        session = getattr(self.operator, "session", None)
        return nullcontext() if session is None else session()

    def cost(self) -> dict[str, Any]:
        """Return the fields of :class:`Measured` that tell what was spent, and by which route."""
        now = getattr(self.operator, "gradients", None)
        spent = None if now is None else now - (self._before or 0.0) + self.recalled
        return {
            "num_matvecs": self.num_matvecs,
            "gradients": spent,
            "route": getattr(self.operator, "route", ""),
        }

    def _answer(self, kind: str, block: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        journal = current()
        if journal is None:
            return self._finite(compute())
        spent = lambda: getattr(self.operator, "gradients", None) or 0.0  # noqa: E731
        answer, recalled = journal.answer(kind, block, lambda: self._finite(compute()), spent)
        self.recalled += recalled
        return answer

    def _finite(self, result: Tensor) -> Tensor:
        if not result.isfinite().all():
            raise NonFiniteError(
                "a product with the operator is not finite, so nothing can be estimated. Look for NaN or infinity in "
                "the operator, or for an overflow of its type."
            )
        return result
