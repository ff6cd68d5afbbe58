"""The Hessian at a point in two parts: across the set of minima and along it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.measures.dormand_prince import Function

_NULL = 1e-6  # eigenvalues below this share of the largest one belong to the set of minima


@dataclass(frozen=True, eq=False)
class Normal:
    """The Hessian at a point, split into the directions that it curves in and the others.

    Attributes:
        values: Eigenvalues, ascending, shape (d,).
        vectors: Eigenvectors as columns, shape (d, d).
    """

    values: Tensor
    vectors: Tensor = field(repr=False)

    @classmethod
    def at(cls, f: Function, x: Tensor) -> Normal:
        """Take the dense Hessian of ``f`` at ``x`` (d,) apart."""
        return cls(*torch.linalg.eigh(torch.func.hessian(f)(x)))

    @property
    def is_null(self) -> Tensor:
        """Which eigenvalues are zero: below a millionth of the largest in magnitude."""
        return self.values.abs() <= _NULL * self.values.abs().max()

    def tangential(self, u: Tensor) -> Tensor:
        """Project ``u`` (d,) onto the null space: along the set of minima."""
        basis = self.vectors[:, self.is_null]
        return basis @ (basis.T @ u)

    def newton(self, gradient: Tensor) -> Tensor:
        """Return the pseudo-inverse times ``gradient``: the way back to the set of minima, to first order."""
        basis = self.vectors[:, ~self.is_null]
        return basis @ ((basis.T @ gradient) / self.values[~self.is_null])
