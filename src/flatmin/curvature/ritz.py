"""Ritz pairs: what a Krylov space knows of the eigenvalues, and how well."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.krylov import Krylov


class Ritz(NamedTuple):
    r"""Eigenpairs (θ, V s) of an operator restricted to a Krylov space, in ascending order.

    Attributes:
        values: θ, shape (m,).
        coefficients: s as columns, (m, m).
        residuals: ‖A V s - θ V s‖ = ‖C s‖ where A is symmetric; it costs no product.
        rounding: Below which nothing is known: 100 ε max \|θ\|.
    """

    values: Tensor
    coefficients: Tensor
    residuals: Tensor
    rounding: float

    @classmethod
    def of(cls, space: Krylov) -> Ritz:
        """Return those of ``space`` as it stands."""
        restricted = space.restricted
        values, coefficients = torch.linalg.eigh((restricted + restricted.T) / 2)
        inside = restricted @ coefficients - coefficients * values
        outside = space.coupling @ coefficients
        residuals = torch.cat([inside, outside]).norm(dim=0)
        return cls(values, coefficients, residuals, 100 * space.eps * float(values.abs().max()))

    @property
    def errors(self) -> Tensor:
        r"""How far each value may be from an eigenvalue, (m,): min(r, r² / δ) with the residual r.

        That one lies within r is a theorem. That it lies within r² / δ, δ being the distance from θ to all other
        eigenvalues, is one too (Temple 1928, Kato 1949), but δ has to be estimated: by the distance to the intervals
        θⱼ ± rⱼ of the other Ritz values.
        """
        distance = (self.values[:, None] - self.values).abs() - self.residuals
        distance.fill_diagonal_(torch.inf)
        gap = distance.min(dim=1).values
        gap[gap.isinf()] = 0.0  # of a single value no distance is known
        return torch.where(gap > self.residuals, self.residuals.square() / gap, self.residuals)
