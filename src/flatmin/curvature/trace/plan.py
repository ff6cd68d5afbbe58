"""Plain probes or deflation, judged by the first probes, whose products are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.curvature.trace.deflated import PROBES, by_deflation
from flatmin.curvature.trace.forward import Differences
from flatmin.curvature.trace.pilot import Pilot
from flatmin.curvature.trace.symmetry import asymmetric

if TYPE_CHECKING:
    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.setup import Setup

FEW = 12  # products that are not worth a look at other ways
LEAST = 6  # products below which there is nothing to look around with


def first_probes(setup: Setup) -> Pilot:
    """Return the pilot, and take the price of a product from it."""
    pilot = Pilot(setup, min(PROBES, setup.left // 3))
    setup.price = pilot.price
    return pilot


def by_pilot(setup: Setup, pilot: Pilot, reason: str = "", *, differences: bool = False) -> TraceEstimate:
    """Return the trace by plain probes or by deflation, whichever the pilot expects to be cheaper.

    Args:
        setup: What is asked for.
        pilot: The first probes.
        reason: Why it came to this.
        differences: Whether forward passes may take the place of products for the samples to come.
    """
    samples, goal = pilot.plain(), setup.goal
    why = [reason] if reason else []
    few = goal.asked and setup.expected(samples) <= FEW
    cheaper = Differences.tried(setup, pilot) if differences and not few and setup.left >= FEW else None
    if cheaper is not None:
        samples = cheaper.plain
        why.append("quadratic forms by forward passes agree with products, at a third of their price")
        few = goal.asked and setup.expected(samples) <= FEW
    if setup.k or not (few or asymmetric(pilot.across)):
        return by_deflation(setup, pilot, why, cheaper)
    if few:
        more = max(setup.expected(samples), 0) / setup.sample_price
        why.append(f"about {more:.0f} more plain probes are expected to do")
    else:
        why.append("the operator is not symmetric, which plain probes do not ask for")
    converged = samples.run(goal, most=len(samples.forms) + setup.samples_left, width=setup.width)
    return setup.estimate(samples, converged=converged, method="hutchinson", reason="; ".join(why))
