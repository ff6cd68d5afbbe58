r"""The density of an operator's spectrum by stochastic Lanczos quadrature.

- Golub, G. and Meurant, G. (2010). Matrices, moments and quadrature with applications.
- Ubaru, S., Chen, J. and Saad, Y. (2017). Fast estimation of tr f(A) via stochastic Lanczos quadrature. SIAM Journal on
  Matrix Analysis and Applications 38.
- Ghorbani, B., Krishnan, S. and Xiao, Y. (2019). An investigation into neural net optimization via Hessian eigenvalue
  density. ICML.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.checks import whole
from flatmin.curvature.counted import Counted
from flatmin.curvature.draws import columns
from flatmin.curvature.eigenvalues import known_eigenpairs
from flatmin.curvature.krylov import Krylov
from flatmin.curvature.operators import LinearOperator
from flatmin.curvature.results import EigenPairs
from flatmin.curvature.ritz import Ritz
from flatmin.curvature.spectrum import SpectralDensity
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Gaussian
from flatmin.streams import Stream

_STREAM = int.from_bytes(b"density")
_RESOLVED = 0.05  # residual relative to the value, up to which a vector counts as an eigenvector


def spectral_density(
    operator: LinearOperator,
    *,
    num_probes: int = 8,
    num_matvecs: int = 256,
    seed: int = 0,
    outliers: EigenPairs | Krylov | None = None,
) -> SpectralDensity:
    r"""Estimate how the eigenvalues are distributed, with an error, by stochastic Lanczos quadrature.

    From a random unit vector v, m steps of Lanczos' method with full reorthogonalisation give the Gauss quadrature of
    the measure that A and v define: nodes θ, the eigenvalues of the tridiagonal T, and weights, the squared first
    components of its eigenvectors. It is exact for polynomials of degree 2 m - 1, and over v

    .. math:: \mathbb E\Big[\sum_j w_j f(\theta_j)\Big] \approx \frac1d \operatorname{tr} f(A)

    One eigenvalue has weight 1/d, which drowns in the noise of eight probes. Known ones, ``outliers``, are therefore
    counted as they are, and the probes sample the complement of their eigenvectors, so that all of their steps go to
    the bulk. An error of these vectors moves eigenvalues by at most the residual; pairs whose residual exceeds 5 % of
    the value are left to the probes.

    Cost: ``num_matvecs``, fewer where a space is invariant before. Memory: a vector for each step of one probe, and for
    each outlier.

    Args:
        operator: Anything with ``shape`` (d, d), ``dtype``, ``device`` and ``@``; symmetric.
        num_probes: Probes; at least 2. The error falls with their root.
        num_matvecs: Products in all; each probe takes m = ``num_matvecs`` // ``num_probes`` steps. Structure finer than
            the range of the bulk divided by m is not resolved.
        seed: Seed of the probes.
        outliers: Eigenpairs of :func:`~flatmin.curvature.top_eigenvalues`, or a space whose converged ones are taken.

    Returns:
        Nodes and weights of every probe, and what follows from them: density with a confidence band, shares of the
        eigenvalues below a bound, trace and moments.

    Raises:
        ArgumentError: The operator is not square or not symmetric, or an argument is out of range.
        ArgumentTypeError: The operator is none, or another argument is no number.
        NonFiniteError: A product is not finite.

    Example:
        >>> A = torch.diag(torch.cat([torch.zeros(30), torch.ones(10)]))
        >>> found = spectral_density(A, num_matvecs=16, seed=1)
        >>> share = found.mass_below(0.5, width=0.0)
        >>> abs(share.value - 0.75) < 3 * share.stderr
        True
    """
    counted = Counted(operator)
    whole("num_probes", num_probes, minimum=2, hint="One probe alone has no standard error.")
    whole("num_matvecs", num_matvecs, minimum=2 * num_probes, hint="Each probe takes its share of them, two at least.")
    whole("seed", seed, minimum=0, hint="It is the seed of the probes.")
    values, vectors = _known(outliers, counted)
    room = counted.d - len(values)
    steps = min(room, num_matvecs // num_probes)
    nodes, weights = torch.zeros(2, num_probes, steps, dtype=values.dtype)
    norm = float(values.abs().max()) if len(values) else 0.0
    with counted.session():
        for index in range(num_probes if room else 0):
            start = columns(counted, Stream(seed).child(_STREAM), index, 1, Gaussian())
            found, share = _quadrature(Krylov(counted, start=start, avoid=vectors, norm=norm), steps)
            nodes[index] = found[-1]  # nodes that are missing repeat the last one at weight zero
            nodes[index, : len(found)] = found
            weights[index, : len(found)] = share * (room / counted.d)
    return SpectralDensity(
        nodes=nodes, weights=weights, outliers=values, dimension=counted.d, seed=seed, **counted.cost()
    )


def _quadrature(space: Krylov, steps: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights, which add up to one."""
    while space.size < steps and space.num_next:
        space.extend()
    ritz = Ritz.of(space)
    return ritz.values, ritz.coefficients[0].square()


def _known(outliers: EigenPairs | Krylov | None, counted: Counted) -> tuple[Tensor, Tensor | None]:
    """Return the eigenvalues that are known well enough, and their vectors (d, k)."""
    if outliers is None:
        return torch.zeros(0, dtype=torch.float64), None
    if not isinstance(outliers, (EigenPairs, Krylov)):
        raise ArgumentTypeError(
            f"outliers is a {type(outliers).__name__}, but eigenvalues with their vectors are needed, as "
            "top_eigenvalues returns them."
        )
    pairs = known_eigenpairs(outliers) if isinstance(outliers, Krylov) else outliers
    if pairs.vectors.shape[0] != counted.d:
        raise ArgumentError(
            f"the outliers have vectors of {pairs.vectors.shape[0]} coordinates, but the operator has dimension "
            f"{counted.d}. Pass the eigenpairs of this operator, as top_eigenvalues returned them."
        )
    good = pairs.residuals <= _RESOLVED * pairs.values.abs()
    return pairs.values[good].double(), pairs.vectors[:, good.to(pairs.vectors.device)]
