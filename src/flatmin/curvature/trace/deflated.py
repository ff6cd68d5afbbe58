r"""A Krylov space carries the outliers of the spectrum; the rest is left to probes.

- Gambhir, A., Stathopoulos, A. and Orginos, K. (2017). Deflation as a method of variance reduction for estimating the
  trace of a matrix inverse. SIAM Journal on Scientific Computing 39.
- Saad, Y. (2011). Numerical methods for large eigenvalue problems, chapter 6.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from flatmin.curvature.eigenvalues import eigenpairs, known_eigenpairs, top_eigenvalues
from flatmin.curvature.krylov import Krylov
from flatmin.curvature.trace.hutchinson import all_columns, hutchinson
from flatmin.curvature.trace.pilot import Pilot
from flatmin.curvature.trace.sampling import SMALL_SAMPLE
from flatmin.curvature.trace.symmetry import check_symmetric

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.complement import Remove
    from flatmin.curvature.trace.sampling import Samples
    from flatmin.curvature.trace.setup import Setup

PROBES = 4
_PATIENCE = 5  # products after which a space that grows must have paid off
_TOL = 1e-3  # relative error of the eigenvalues that are handed out


def deflated(setup: Setup) -> TraceEstimate:
    r"""Return the trace on a Krylov space plus the mean of probes of its complement.

    .. math:: \operatorname{tr} A = \operatorname{tr} V^\top A V + \mathbb E[z^\top P A P z], \qquad P = I - VV^\top

    V is an orthonormal basis of span(v, Av, A²v, ...), grown by one product at a time; tr V'AV is the sum of its Ritz
    values, exactly, whether these have converged to eigenvalues or not. Unbiased, since v is independent of the probes.
    One probe has the variance of :meth:`Probes.variance` for PAP in place of A: where a few eigenvalues stand out,
    a small part of it.

    How far V grows: four probes come first, whose products are kept and give samples of any complement without another
    product. They estimate ‖PAP‖_F² and thereby the number of probes that would still be needed (or, without a
    tolerance, the error that the rest of the budget would leave). V grows until the expected total has not fallen for
    five products, or with a tolerance for half of its dimension. Probes continue where the first four ended. That these
    also choose the dimension of V biases the estimate by no more than a small part of its error.

    Memory: a vector for each dimension of V, and eight.

    Raises:
        ArgumentError: The operator is not symmetric.
    """
    if setup.A.d <= setup.left and not setup.goal.asked and not setup.k and setup.rank is None:
        return all_columns(setup)
    if setup.left < 6:
        return hutchinson(setup, reason="fewer than 6 products leave none for a space")
    pilot = Pilot(setup, min(PROBES, setup.left // 3))
    check_symmetric(pilot.across)
    return by_deflation(setup, pilot, [])


def by_deflation(
    setup: Setup, pilot: Pilot, why: list[str], cheaper: Callable[[Samples, int, Remove], Samples] | None = None
) -> TraceEstimate:
    """Return the estimate whose first samples are those of ``pilot``.

    Args:
        setup: What is asked for.
        pilot: The first probes.
        why: Why deflation was chosen.
        cheaper: Makes samples of a complement into some that cost ``setup.sample_price``.
    """
    before = setup.expected(pilot.plain())
    space = Krylov(setup.A, seed=setup.probes.seed)
    settled = not setup.k or top_eigenvalues(space, setup.k, tol=_TOL, max_matvecs=setup.left + space.size).converged
    samples, told = _grow(setup, pilot, space, before)
    pairs = eigenpairs(space, setup.k, converged=settled) if setup.k else known_eigenpairs(space, tol=_TOL)
    eigenvalues = pairs if len(pairs) else None
    if setup.goal.asked and setup.rank is None and setup.A.d <= min(setup.left, setup.expected(samples)):
        whole = all_columns(setup)
        return replace(whole, reason="; ".join([*why, whole.reason]), eigenvalues=eigenvalues)
    found: Samples | float = samples.offset
    converged = True
    if space.size < setup.A.d:
        if cheaper is not None:
            samples = cheaper(samples, setup.A.d - space.size, lambda rows: space.remove(rows.T))
        most = len(samples.forms) + setup.samples_left
        found, converged = samples, samples.run(setup.goal, most=most, width=setup.width)
    return setup.estimate(
        found,
        converged=converged,
        method="deflated",
        reason="; ".join([*why, told]),
        eigenvalues=eigenvalues,
    )


def _grow(setup: Setup, pilot: Pilot, space: Krylov, before: float) -> tuple[Samples, str]:
    """Let a space grow as far as it pays; return samples of its complement, and what happened, in words."""
    most = space.size + setup.left if setup.rank is None else min(setup.rank, space.size + setup.left)
    expected = {0: before}
    while True:
        samples = pilot.deflated(space)
        expected[space.size] = setup.expected(samples) + (space.size if setup.goal.asked else 0)
        if space.size >= most or not space.num_next or (setup.rank is None and _enough(setup, expected, samples)):
            break
        target = min(most, space.size + max(2, min(space.size // 4, setup.left // 8)))
        while space.size < target and space.num_next:
            space.extend()
    return samples, f"{space.size} dimensions deflated, {_told(setup, expected)}"


def _enough(setup: Setup, expected: dict[int, float], samples: Samples) -> bool:
    """Tell whether another product for the space is not expected to pay."""
    size = max(expected)
    if setup.goal.asked and setup.needed(samples) <= SMALL_SAMPLE:
        return True
    # Where a tolerance is asked for, a plateau may be long; where a budget is to be spent, it is not spent on hope.
    patience = max(min(_PATIENCE, setup.goal.budget // 4), size // 2 if setup.goal.asked else 0)
    before = [value for m, value in expected.items() if m <= size - patience]
    recent = [value for m, value in expected.items() if m > size - patience]
    return bool(before) and min(recent) >= min(before)


def _told(setup: Setup, expected: dict[int, float]) -> str:
    first, last = expected[0], expected[max(expected)]
    if not setup.goal.asked:
        gain = math.sqrt(first / last) if last else math.inf
        return f"for an error expected to be {gain:.2g} times smaller"
    return f"by which the products still to come are expected to fall from {first:.0f} to {last - max(expected):.0f}"
