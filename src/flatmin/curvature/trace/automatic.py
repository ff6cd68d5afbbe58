"""Which way is cheapest, judged by a few products that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.curvature.trace.deflated import PROBES, by_deflation
from flatmin.curvature.trace.hutchinson import all_columns, hutchinson
from flatmin.curvature.trace.pilot import Pilot
from flatmin.curvature.trace.symmetry import asymmetric

if TYPE_CHECKING:
    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.setup import Setup

_FEW = 12  # products that are not worth a space


def automatic(setup: Setup) -> TraceEstimate:
    """Return the trace by the way that a pilot finds cheapest."""
    A, goal = setup.A, setup.goal
    if A.d <= setup.left and (not goal.asked or A.d <= 2 * _FEW):
        return all_columns(setup)
    if setup.left < 6:
        return hutchinson(setup, reason="fewer than 6 products leave none to look around with")
    pilot = Pilot(setup, min(PROBES, setup.left // 3))
    plain = pilot.plain()
    expected = setup.expected(plain)
    if asymmetric(pilot.across):
        reason = "the operator is not symmetric"
    elif goal.asked and expected <= _FEW:
        reason = f"{expected:.0f} more probes are expected to do"
    else:
        return by_deflation(setup, pilot)
    converged = plain.run(goal, most=len(plain.forms) + setup.left, width=setup.width)
    return setup.estimate(plain, converged=converged, method="hutchinson", reason=reason)
