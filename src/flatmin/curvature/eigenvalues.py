r"""The outermost eigenvalues of a symmetric operator, from products alone.

- Lanczos, C. (1950). An iteration method for the solution of the eigenvalue problem of linear operators.
- Golub, G. and Underwood, R. (1977). The block Lanczos method for computing eigenvalues.
- Saad, Y. (2011). Numerical methods for large eigenvalue problems, chapters 3 and 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from flatmin.checks import choice, positive, whole
from flatmin.curvature.counted import Counted
from flatmin.curvature.krylov import Krylov
from flatmin.curvature.layout import Layout
from flatmin.curvature.results import EigenPairs
from flatmin.curvature.ritz import Ritz
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from flatmin.curvature.operators import LinearOperator

Which = Literal["magnitude", "largest", "smallest", "both"]

_ALONE = 0.02  # the residual as a share of the distance to the next Ritz value

_SCORES: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "magnitude": (torch.abs,),
    "largest": (torch.positive,),
    "smallest": (torch.neg,),
    "both": (torch.positive, torch.neg),
}


def top_eigenvalues(
    operator: LinearOperator | Krylov,
    k: int = 1,
    *,
    which: Which = "magnitude",
    seed: int = 0,
    tol: float = 1e-3,
    block_size: int = 1,
    max_matvecs: int | None = None,
) -> EigenPairs:
    r"""Find the k outermost eigenvalues with their eigenvectors by Lanczos' method with full reorthogonalisation.

    From a random vector v the space span(v, A v, A² v, ...) is built, and the eigenpairs (θ, x) of A restricted to it
    are taken (Rayleigh and Ritz). Their residuals r = ‖A x - θ x‖ come without another product. The run ends when, for
    all k,

    - the error, estimated as min(r, 2 r² / δ) with the distance δ to the other Ritz values (see
      :class:`~flatmin.curvature.ritz.Ritz`), is at most ``tol`` \|θ\|;
    - the value stands alone: r is at most ``tol`` \|θ\|, or 20 ``tol`` (at most 2 %) of δ and of \|θ\|, so that a
      neighbour twice as far away would have shown as a residual;
    - and no Ritz value beside the k could, within its own residual, still overtake them.

    The first saves one or two products in fifteen against the common rule r ≤ ``tol`` \|θ\|; the second is why it does
    not save more. Both rules can miss a neighbour closer than they resolve and give the next eigenvalue in its place:
    in 1,000 simulated spectra of ten outliers, spaced as those of random matrices are, this rule did so 3 times, the
    common one never, the first condition alone 19 times. So it is with a start that is all but orthogonal to an
    eigenvector. Ask for a smaller ``tol`` where that matters.

    Of an eigenvalue that occurs several times, one copy is found for each vector of a block, until the space is
    invariant; from there the run goes on with random vectors from its complement, until copies are exhausted.

    Cost: one product a step. Memory: d numbers a product in float32 (float64 for operators of it), and k + 2 more.

    Args:
        operator: Anything with ``shape`` (d, d), ``dtype``, ``device`` and ``@``, symmetric; or a
            :class:`~flatmin.curvature.krylov.Krylov` space, which is taken as far as it has come and grown in place.
        k: How many (with ``"both"``: at each end); at most d in all.
        which: ``"magnitude"``: the largest in magnitude, of either sign, in descending order of it; ``"largest"``, in
            descending order; ``"smallest"``: the most negative, in ascending order; ``"both"``: the k largest, then
            the k smallest.
        seed: Seed of the random start.
        tol: Error to reach, relative to each eigenvalue.
        block_size: Vectors multiplied at once. More than one finds eigenvalues that occur as often, for more products.
        max_matvecs: The most products to spend. Default: 20 k or 20 blocks, and 100 at least.

    Returns:
        Values, residuals and errors of shape (k,), on the CPU; vectors of shape (d, k), on the operator's device, and
        as named tensors in ``trees`` where the operator has names. ``converged`` is False if the budget ended first.

    Raises:
        ArgumentError: k exceeds d, the operator is not square or not symmetric, or an argument is out of range.
        ArgumentTypeError: The operator is none, or another argument is no number.
        NonFiniteError: A product is not finite.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, -5.0, 3.0, 0.5]))
        >>> [round(value, 3) for value in top_eigenvalues(A, k=2).values.tolist()]
        [-5.0, 3.0]
    """
    counted = operator.counted if isinstance(operator, Krylov) else Counted(operator)
    scores = _SCORES[choice("which", which, _SCORES)]
    wanted = whole("k", k, minimum=1, hint="It is the number of eigenvalues.") * len(scores)
    if wanted > counted.d:
        each = " at each end" if len(scores) > 1 else ""
        raise ArgumentError(
            f"k is {k}{each}, but the operator has dimension {counted.d} and no more eigenvalues than that."
        )
    whole("seed", seed, minimum=0, hint="It is the seed of the random start.")
    tol = positive("tol", tol, hint="It is the error to reach relative to the eigenvalue, such as 1e-3.")
    width = min(counted.d, whole("block_size", block_size, minimum=1, hint="It is the number of vectors a block."))
    least = max(wanted, width)
    budget = max(100, 20 * least) if max_matvecs is None else max_matvecs
    whole(
        "max_matvecs", budget, minimum=least, hint=f"{wanted} eigenvalues in blocks of {width} take {least} at least."
    )

    with counted.session():
        space = operator if isinstance(operator, Krylov) else Krylov(counted, width=width, seed=seed)
        while not (settled := _settled(space, k, tol, scores)):
            space.restart(width)
            if not 0 < space.num_next <= budget - space.size:
                break
            space.extend()
        return eigenpairs(space, k, which=which, converged=settled)


def eigenpairs(space: Krylov, k: int, *, which: Which = "magnitude", converged: bool = True) -> EigenPairs:
    """Return the outermost k Ritz pairs of a Krylov space as it stands, without a product."""
    ritz, layout = Ritz.of(space), getattr(space.counted.operator, "layout", None)
    chosen = torch.cat([_order(ritz.values, score)[:k] for score in _SCORES[which]])
    return EigenPairs(
        values=ritz.values[chosen],
        vectors=space.combine(ritz.coefficients[:, chosen]),
        residuals=ritz.residuals[chosen],
        errors=ritz.errors[chosen],
        layout=layout if isinstance(layout, Layout) else None,  # tensors have one of another kind
        converged=converged,
        seed=space.seed,
        **space.counted.cost(),
    )


def known_eigenpairs(space: Krylov, *, tol: float = 1e-3) -> EigenPairs:
    """Return the pairs of largest magnitude that a Krylov space knows to ``tol``, as many as there are in a row."""
    ritz = Ritz.of(space)
    order = _order(ritz.values, torch.abs)
    known = ritz.residuals[order] <= (tol * ritz.values[order].abs()).clamp(min=ritz.rounding)
    return eigenpairs(space, int(known.int().cumprod(0).sum()))


def _order(values: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    return score(values).argsort(descending=True, stable=True)


def _settled(space: Krylov, k: int, tol: float, scores: tuple[Callable[[Tensor], Tensor], ...]) -> bool:
    """Tell whether the first k values by every score are good enough, and no other can come before them."""
    if space.size < min(k * len(scores), space.capacity):
        return False
    ritz = Ritz.of(space)
    return all(_first_are_settled(space, ritz, k, tol, score) for score in scores)


def _first_are_settled(space: Krylov, ritz: Ritz, k: int, tol: float, score: Callable[[Tensor], Tensor]) -> bool:
    order = _order(ritz.values, score)
    first, rest = order[:k], order[k:]
    allowed = (tol * ritz.values[first].abs()).clamp(min=5 * ritz.rounding)
    alone = torch.maximum(allowed, min(_ALONE, 20 * tol) * torch.minimum(ritz.gaps[first], ritz.values[first].abs()))
    if bool(((ritz.errors[first] > allowed) | (ritz.residuals[first] > alone)).any()):
        return False
    if space.size == space.capacity:
        return True
    last = score(ritz.values[first[-1]]) + allowed[-1]
    if not space.num_next:  # another start would find nothing more, since the latest one did not
        return bool(score(torch.linalg.eigvalsh(space.latest)).max() <= last)
    if len(space.latest) < space.size:
        return False  # copies are being looked for: to the end
    if not len(rest):
        return True
    # Ritz values grow outwards as the space grows, so only the outermost on either side can become one of the k.
    ends = rest[torch.stack([ritz.values[rest].argmax(), ritz.values[rest].argmin()])]
    return bool((score(ritz.values[ends]) + ritz.residuals[ends] <= last).all())
