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
from flatmin.curvature.results import EigenPairs
from flatmin.curvature.ritz import Ritz
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from flatmin.curvature.operators import LinearOperator

Which = Literal["magnitude", "largest", "smallest", "both"]

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
    space = operator if isinstance(operator, Krylov) else None
    counted = Counted(operator) if space is None else space.counted
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
    budget = max(100, 20 * wanted) if max_matvecs is None else max_matvecs
    least = max(wanted, width)
    whole("max_matvecs", budget, minimum=least, hint=f"{wanted} eigenvalues in blocks of {width} take {least} at least.")

    with counted.session():
        space = Krylov(counted, width=width, seed=seed) if space is None else space
        while not (settled := _settled(space, k, tol, scores)):
            space.restart(width)
            if not 0 < space.num_next <= budget - space.size:
                break
            space.extend()
        return eigenpairs(space, k, which=which, converged=settled)


def eigenpairs(space: Krylov, k: int, *, which: Which = "magnitude", converged: bool = True) -> EigenPairs:
    """Return the outermost k Ritz pairs of a Krylov space as it stands, without a product."""
    ritz = Ritz.of(space)
    chosen = torch.cat([_order(ritz.values, score)[:k] for score in _SCORES[which]])
    return EigenPairs(
        values=ritz.values[chosen],
        vectors=space.combine(ritz.coefficients[:, chosen]),
        residuals=ritz.residuals[chosen],
        errors=ritz.errors[chosen],
        layout=getattr(space.counted.operator, "layout", None),
        converged=converged,
        **space.counted.cost(),
    )


def _order(values: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    return score(values).argsort(descending=True, stable=True)


def _settled(space: Krylov, k: int, tol: float, scores: tuple[Callable[[Tensor], Tensor], ...]) -> bool:
    """Tell whether the first k values by every score are good enough, and no other can come before them."""
    if space.size < min(k * len(scores), space.capacity):
        return False
    ritz = Ritz.of(space)
    return all(_first_are_settled(space, ritz, k, tol, score) for score in scores)


def _first_are_settled(
    space: Krylov, ritz: Ritz, k: int, tol: float, score: Callable[[Tensor], Tensor]
) -> bool:
    order = _order(ritz.values, score)
    first, rest = order[:k], order[k:]
    allowed = (tol * ritz.values[first].abs()).clamp(min=ritz.rounding)
    if bool((ritz.errors[first] > allowed).any()):
        return False
    last = score(ritz.values[first[-1]]) + allowed[-1]
    if space.size == space.capacity:
        return True
    if not space.num_next:
        return bool(score(torch.linalg.eigvalsh(space.latest)).max() <= last)
    if space.latest.shape != ritz.coefficients.shape:
        return False  # copies of eigenvalues are being looked for: to the end
    if not len(rest):
        return True
    # Ritz values grow outwards as the space grows, so only the outermost on either side can become one of the k.
    ends = rest[torch.stack([ritz.values[rest].argmax(), ritz.values[rest].argmin()])]
    return bool((score(ritz.values[ends]) + ritz.residuals[ends] <= last).all())
