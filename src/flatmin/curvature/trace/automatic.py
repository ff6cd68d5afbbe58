"""Which way is cheapest: the rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flatmin.curvature.eigenvalues import top_eigenvalues
from flatmin.curvature.krylov import Krylov
from flatmin.curvature.operators.hessian import Hessian
from flatmin.curvature.trace.control import control, outlook
from flatmin.curvature.trace.hutchinson import all_columns, hutchinson
from flatmin.curvature.trace.plan import FEW, LEAST, by_pilot, first_probes

if TYPE_CHECKING:
    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.control import Outlook
    from flatmin.curvature.trace.setup import Setup

_BUILD, _PRODUCT = 1.0, 2.0  # gradients, before anything is measured
_AT_ONCE = _BUILD + 8 * _PRODUCT  # what any way by probes costs
_SEVERAL = _BUILD + 4 * _PRODUCT


def automatic(setup: Setup) -> TraceEstimate:
    r"""Return the trace by the way that is expected to be cheapest.

    1. For a :class:`Hessian`, the first batch is looked at. If the network is piecewise linear in each parameter and
       the Gauss-Newton trace can be had within the budget, that is the trace; of many classes, the light ones are
       sampled.
    2. As many products as dimensions give the trace itself: so it is done where the budget is spent in any case, and in
       at most 24 dimensions.
    3. For a :class:`Hessian` that is not piecewise linear, the Gauss-Newton part is taken at once if it costs no more
       than eight products and half of the budget, as a sample usually does; probes then see only H - GGN. If it costs
       more, four probes come first, and it is taken if with eight probes of H - GGN it costs less than half of what
       plain probes of H are then expected to.
    4. Else the four probes decide between plain probes, if another dozen are expected to do, and deflation, which goes
       on as far as it pays. For a :class:`Hessian`, and for what the Gauss-Newton part leaves of it, the four probes
       are repeated by forward passes; if the two agree well enough, forward passes take the place of products for the
       probes to come.

    XTrace and Hutch++ are never chosen: the Krylov space takes one product a dimension where a sketch takes two, and
    catches outliers in fewer dimensions. Where eigenvalues are asked for as well, their Krylov space is there in any
    case, so that deflation follows unless the trace is exact.
    """
    if type(setup.A.operator) is Hessian:
        return _of_hessian(setup, setup.A.operator)
    if _few_dimensions(setup):
        return all_columns(setup)
    if not getattr(setup.A.operator, "multiplies", True):
        return hutchinson(setup, reason="the operator has quadratic forms and no products")
    if setup.left < LEAST:
        return hutchinson(setup, reason=f"fewer than {LEAST} products leave none to look around with")
    return by_pilot(setup, first_probes(setup))


def _few_dimensions(setup: Setup) -> bool:
    d = setup.A.d
    return d <= setup.left and not setup.k and (not setup.goal.asked or d <= 2 * FEW)


def _of_hessian(setup: Setup, H: Hessian) -> TraceEstimate:
    goal, seen = setup.goal, outlook(H)
    setup.limit, setup.price = _BUILD + _PRODUCT * goal.budget, _PRODUCT
    if seen is not None and not seen.curved and seen.price <= setup.limit:
        return _with_eigenvalues(setup, seen)
    if _few_dimensions(setup):
        return all_columns(setup)
    if seen is not None and seen.price <= min(_AT_ONCE, (setup.limit - _SEVERAL) / 2):
        costs = "costs" if seen.exact else "is expected to cost"
        why = f"the Gauss-Newton part {costs} {seen.price:.2g} gradients, less than eight products"
        return _with_eigenvalues(setup, seen, why)
    if setup.left < LEAST:
        return hutchinson(setup, reason=f"fewer than {LEAST} products leave none to look around with")
    pilot = first_probes(setup)
    setup.limit = pilot.build + pilot.price * goal.budget
    if seen is not None and seen.exact and not setup.k:
        whole = pilot.price * (setup.expected(pilot.plain()) if goal.asked else setup.left)
        if seen.price + _AT_ONCE < whole / 2:
            told = (
                f"where plain probes are expected to cost {whole:.0f}"
                if goal.asked
                else f"of {whole:.0f} that are left"
            )
            return control(setup, f"the Gauss-Newton part costs {seen.price:.2g} gradients, {told}", seen)
    return by_pilot(setup, pilot, differences=True)


def _with_eigenvalues(setup: Setup, seen: Outlook, reason: str = "") -> TraceEstimate:
    if not setup.k:
        return control(setup, reason, seen)
    pairs = top_eigenvalues(Krylov(setup.A, seed=setup.probes.seed), setup.k, max_matvecs=max(setup.k, setup.left))
    return replace(control(setup, reason, seen), eigenvalues=pairs)
