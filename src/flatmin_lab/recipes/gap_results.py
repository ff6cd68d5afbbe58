"""What a comparison of the perturbation gap with the trace gives, as it is stored, and what follows from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

from flatmin.curvature.results import plus_minus
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from flatmin.measures import GapEstimate, PerturbationTrace

_AGREES = 3.0  # standard errors


class GapPoint(Value):
    """Gap and approximation at one σ, in units of the loss.

    Attributes:
        sigma: Standard deviation of the noise.
        gap: F(W) - f(W).
        gap_stderr: Its standard error.
        approximation: σ²/2 tr ∇²f(W).
        approximation_stderr: Its standard error.
        difference: (gap - approximation) / gap; the paper's error is its magnitude.
        difference_stderr: Its standard error, to first order.
        score: The difference in standard errors.
    """

    sigma: float
    gap: float
    gap_stderr: float
    approximation: float
    approximation_stderr: float
    difference: float
    difference_stderr: float
    score: float

    @classmethod
    def of(cls, gap: GapEstimate, trace: float, trace_stderr: float) -> Self:
        """Compare a gap with a trace that was estimated from other draws."""
        half = gap.sigma**2 / 2
        value, error = half * trace, half * trace_stderr
        both = math.hypot(gap.stderr, error)
        return cls(
            sigma=gap.sigma,
            gap=gap.value,
            gap_stderr=gap.stderr,
            approximation=value,
            approximation_stderr=error,
            difference=1 - value / gap.value if gap.value else math.nan,  # zero where rounding swallows all
            difference_stderr=math.hypot(error / gap.value, value * gap.stderr / gap.value**2)
            if gap.value
            else math.nan,
            score=(gap.value - value) / both if both else math.copysign(math.inf, gap.value - value),
        )


class GapComparison(Value):
    """What a recipe gives.

    Attributes:
        name: Of the recipe.
        size: Of the recipe.
        seed: Of everything random.
        network: In a few words.
        data: In a few words.
        num_examples: Of the training set, all of which are measured on.
        num_perturbed: Weights that noise is added to, and whose block's trace is taken.
        loss: f(W).
        accuracy: Share of the training set that is classified rightly.
        trace: Of the Hessian's block.
        trace_stderr: Its standard error; 0 where it is exact.
        trace_method: How it was found.
        smoothed_trace: 2 gap / σ² at the smallest σ, which counts kinks.
        smoothed_stderr: Its standard error.
        kinks: Whether the loss has kinks within the reach of the noise of the smallest σ, as
            :func:`~flatmin.measures.perturbation_trace` tells; None where it cannot.
        exponent: By which power of σ its samples agree: 2 where the loss is smooth, -1/2 at kinks.
        num_pairs: Pairs of points at each σ.
        points: The comparison at each σ, ascending.
        rss: Σ (gap - approximation)² / Σ gap².
        chance_rss: What it would be, on average, if the two differed by their Monte-Carlo errors alone.
        verdict: What follows.
        environment: Machine and software.
    """

    name: str
    size: str
    seed: int
    network: str
    data: str
    num_examples: int
    num_perturbed: int
    loss: float
    accuracy: float
    trace: float
    trace_stderr: float
    trace_method: str
    smoothed_trace: float
    smoothed_stderr: float
    kinks: bool | None
    exponent: float
    num_pairs: int
    points: tuple[GapPoint, ...]
    rss: float
    chance_rss: float
    verdict: str
    environment: dict[str, str]


def verdict(points: tuple[GapPoint, ...], shape: PerturbationTrace) -> str:
    """Say in words what the comparison shows."""
    first = points[0]
    off = f"{plus_minus(100 * first.difference, 100 * first.difference_stderr)} % of the gap at σ = {first.sigma:g}"
    if shape.kinks:
        seen = "beyond chance" if abs(first.score) > _AGREES else "which chance alone may make"
        return (
            f"The noise meets kinks, however small it is, and second derivatives do not see them: the gap and "
            f"σ²/2 tr H differ by {off}, {seen}. Equation (4) and the bound assume two derivatives and do not "
            "hold here; the smoothed trace 2 gap / σ² is what the noise acts on."
        )
    agreeing = [p.sigma for p in _agreeing(points)]
    what = "The noise meets no kinks" if shape.kinks is False else "Whether the noise meets kinks is undecided"
    if not agreeing:
        return f"{what}, but gap and σ²/2 tr H differ by {off}, beyond chance: σ reaches too far. Take smaller ones."
    reach = f"{what}: gap and σ²/2 tr H agree within {_AGREES:g} standard errors up to σ = {agreeing[-1]:g}"
    return f"{reach}." if len(agreeing) == len(points) else f"{reach}; beyond it, higher orders show."


def _agreeing(points: tuple[GapPoint, ...]) -> list[GapPoint]:
    """Return the points before the first that differs beyond chance."""
    first = next((i for i, p in enumerate(points) if abs(p.score) > _AGREES), len(points))
    return list(points[:first])
