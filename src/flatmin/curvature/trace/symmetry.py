"""Whether an operator is symmetric, seen from products that were made for other ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

_ASYMMETRY = (
    0.25  # above what products in bfloat16 or by differences show, below what a matrix that is not symmetric does
)


def asymmetric(forms: Tensor) -> bool:
    """Tell from zᵢ'Azⱼ for independent zᵢ, (n, n), that A is far from symmetric."""
    across = forms - forms.diag().diag()
    return float((forms - forms.T).norm()) > _ASYMMETRY * float(across.norm())


def check_symmetric(forms: Tensor) -> None:
    """Raise ArgumentError if A is far from symmetric."""
    if asymmetric(forms):
        raise ArgumentError(
            "the operator is not symmetric: x'(Ay) and y'(Ax) differ by more than 25 %. For one that is not meant to "
            "be, method='hutchinson' and 'hutch++' are unbiased too. If it should be, its products are not "
            "reproducible (dropout?)."
        )
