r"""The eigenvalues of largest magnitude of a symmetric operator, from products alone.

- Golub, G. and Underwood, R. (1977). The block Lanczos method for computing eigenvalues.
- Saad, Y. (2011). Numerical methods for large eigenvalue problems, chapter 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from flatmin.checks import positive, whole
from flatmin.curvature.krylov import Krylov
from flatmin.curvature.operators import dimension
from flatmin.curvature.results import EigenPairs
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.operators import LinearOperator


def top_eigenvalues(
    operator: LinearOperator,
    k: int = 1,
    *,
    seed: int = 0,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
) -> EigenPairs:
    r"""Find the k eigenvalues of largest magnitude, of either sign, by block Lanczos with full reorthogonalisation.

    From k + 1 random vectors V₀ the space span(V₀, A V₀, A² V₀, ...) is built, and the eigenpairs (θ, V s) of A
    restricted to it are taken (Rayleigh and Ritz). A block finds eigenvalues that occur several times, which a single
    vector cannot, and its one vector more than k guards against a start that happens to be all but orthogonal to an
    eigenvector. Coefficients are computed in float64, whatever the type of the operator; the residual of each pair,

    .. math:: \|A x - \theta x\|, \qquad |\theta - \lambda| \le \|A x - \theta x\| \text{ for some eigenvalue } \lambda,

    comes out of them without another product. The run ends when all k residuals are at most ``tol`` · \|θ\| (or at the
    rounding error, 100 ε max \|θ\|, which is where zero eigenvalues end) and no Ritz value outside the k could, within
    its own residual, still overtake them.

    Cost: k + 1 products a block, each block a single call of ``operator @ block``; about six blocks where the spectrum
    has outliers, as Hessians have. Memory: one vector of d coordinates for each product, and 6 (k + 1) more.

    Args:
        operator: Anything with ``shape`` (d, d), ``dtype``, ``device`` and ``@``; symmetric.
        k: How many; at most d.
        seed: Seed of the random start.
        tol: Relative residual to reach. The error of an isolated eigenvalue is of the order of its square.
        max_matvecs: The most products to spend; at least k + 1. Default: the larger of 100 and 20 k.

    Returns:
        Values and residuals of shape (k,), on the CPU; vectors of shape (d, k), on the operator's device. For a
        :class:`Hessian`, ``H.layout.split(vectors[:, 0])`` gives an eigenvector as named tensors. ``converged`` is
        False if the budget ended first.

    Raises:
        ArgumentError: k exceeds d, the operator is not square or not symmetric, or an argument is out of range.
        ArgumentTypeError: The operator is none, or another argument is no number.
        NonFiniteError: A product is not finite.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, -5.0, 3.0, 0.5]))
        >>> [round(value, 3) for value in top_eigenvalues(A, k=2).values.tolist()]
        [-5.0, 3.0]
    """
    d = dimension(operator)
    whole("k", k, minimum=1, hint="It is the number of eigenvalues.")
    if k > d:
        raise ArgumentError(f"k is {k}, but the operator has dimension {d} and no more eigenvalues than that.")
    whole("seed", seed, minimum=0, hint="It is the seed of the random start.")
    tol = positive("tol", tol, hint="It is the residual to reach relative to the eigenvalue, such as 1e-3.")
    budget = max(100, 20 * k) if max_matvecs is None else max_matvecs
    width = min(d, k + 1)
    whole("max_matvecs", budget, minimum=width, hint=f"The first block takes {width} products.")

    space = Krylov(operator, d, width=width, seed=seed)
    ritz, settled = _Ritz.of(space), False
    while not (settled := ritz.settled(k, tol)) and 0 < space.num_next <= budget - space.size:
        space.extend()
        ritz = _Ritz.of(space)
    return EigenPairs(
        values=ritz.values[:k],
        vectors=space.combine(ritz.coefficients[:, :k]),
        residuals=ritz.residuals[:k],
        num_matvecs=space.size,
        converged=settled,
    )


class _Ritz(NamedTuple):
    """Eigenpairs of an operator restricted to a Krylov space, in descending order of magnitude."""

    values: Tensor
    coefficients: Tensor
    residuals: Tensor
    rounding: float

    @classmethod
    def of(cls, space: Krylov) -> _Ritz:
        restricted = space.restricted
        values, coefficients = torch.linalg.eigh((restricted + restricted.T) / 2)
        order = values.abs().argsort(descending=True, stable=True)
        values, coefficients = values[order], coefficients[:, order]
        inside = restricted @ coefficients - coefficients * values
        outside = space.coupling @ coefficients
        residuals = torch.cat([inside, outside]).norm(dim=0)
        return cls(values, coefficients, residuals, 100 * space.eps * float(values.abs().max()))

    def settled(self, k: int, tol: float) -> bool:
        """Tell whether the first ``k`` pairs are good enough, and no other can come before them."""
        size = self.values.abs()
        if bool((self.residuals[:k] > (tol * size[:k]).clamp(min=self.rounding)).any()):
            return False
        if len(self.values) == k:
            return True
        # Ritz values grow outwards as the space grows, so only the outermost on either side can become one of the k.
        ends = k + torch.stack([self.values[k:].argmax(), self.values[k:].argmin()])
        return bool((size[ends] + self.residuals[ends] <= size[k - 1] * (1 + tol) + self.rounding).all())
