"""Ritz pairs: what a Krylov space knows of the eigenvalues, and how well."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.krylov import Krylov


class Ritz(NamedTuple):
    r"""Eigenpairs (θ, V s) of an operator restricted to a Krylov space, in ascending order.

    That an eigenvalue lies within the residual r of θ is a theorem. That one lies within r² / δ, δ being the distance
    from θ to all other eigenvalues, is one too (Temple 1928, Kato 1949), but δ can only be estimated, here by the
    distance to the intervals θⱼ ± rⱼ of the other Ritz values: an eigenvalue that has not shown yet is not seen. Since
    the next one may not have arrived, twice r² / δ is said.

    Attributes:
        values: θ, shape (m,).
        coefficients: s as columns, (m, m).
        residuals: r = ‖A V s - θ V s‖, which is ‖C s‖ where A is symmetric, and costs no product.
        gaps: The estimate of δ; zero or negative where it is not known.
        rounding: 20 ε max \|θ\|, below which nothing is known.
    """

    values: Tensor
    coefficients: Tensor
    residuals: Tensor
    gaps: Tensor
    rounding: float

    @classmethod
    def of(cls, space: Krylov) -> Ritz:
        """Return those of ``space`` as it stands."""
        restricted = space.restricted
        values, coefficients = torch.linalg.eigh((restricted + restricted.T) / 2)
        inside = restricted @ coefficients - coefficients * values
        outside = space.coupling @ coefficients
        residuals = torch.cat([inside, outside]).norm(dim=0)
        distances = (values[:, None] - values).abs() - residuals
        gaps = distances.fill_diagonal_(torch.inf).min(dim=1).values
        gaps[gaps.isinf()] = 0.0  # a value alone
        return cls(values, coefficients, residuals, gaps, 20 * space.eps * float(values.abs().max()))

    @property
    def errors(self) -> Tensor:
        """How far each value may be from an eigenvalue: min(r, 2 r² / δ), and rounding."""
        quadratic = 2 * self.residuals * (self.residuals / self.gaps)
        return torch.where(self.gaps > 2 * self.residuals, quadratic, self.residuals) + self.rounding
