"""The rise of the loss over a grid of radii, and where it passes what is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from flatmin.curvature.results import plus_minus
from flatmin.perturb.displace import Displacer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from flatmin.curvature.risk import EmpiricalRisk
    from flatmin.perturb.flow import Displacement

_EXTENSION = 12  # points that a grid may grow by


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RadiusSearch:
    """The rise of the loss with the radius, and the largest radius at which it stays within a tolerance.

    Attributes:
        kind: ``"sigma"``: standard deviation of noise on each weight; ``"rho"``: length of a step along the gradient.
        value: The proposal: where the rise first passes ``tolerance``, between two radii of the grid by the straight
            line on log-log axes (exact for a power of the radius), or the lower of the two where a rise has no
            logarithm. If the rise passes at no radius, the largest; if it lies above already at the smallest, NaN.
        stderr: Standard error of ``value`` over the draws of the noise, to first order; 0 for rho, which draws none.
        grid: Radii that were measured, ascending, shape (n,), float64.
        rises: Mean rise of the loss at each, shape (n,), float64; infinite where the loss overflowed.
        stderrs: Their standard errors, shape (n,); NaN where the rise over draws is infinite, 0 for rho.
        clean_loss: The loss at the weights themselves.
        tolerance: The rise that is allowed, in units of the loss.
        num_evaluations: Evaluations of the loss on all data that it took; for rho, one of them with its gradient.
        num_added: How many radii were added to the grid that was asked for, until it enclosed the tolerance.
    """

    kind: Literal["sigma", "rho"]
    value: float
    stderr: float
    grid: Tensor
    rises: Tensor
    stderrs: Tensor
    clean_loss: float
    tolerance: float
    num_evaluations: int
    num_added: int = 0

    @property
    def is_enclosed(self) -> bool:
        """Whether the rise passes the tolerance between two radii of the grid, so that ``value`` lies between them."""
        return bool((self.rises[0] <= self.tolerance) & (self.rises > self.tolerance).any())

    def __repr__(self) -> str:
        """Show proposal, loss, rise, and cost in one line."""
        if self.is_enclosed:
            number, rise = plus_minus(self.value, self.stderr) if self.stderr else f"{self.value:.4g}", "by"
            number = f"= {number}"
        elif math.isnan(self.value):
            number, rise = f"< {float(self.grid[0]):.2g}", "by more than"
        else:
            number, rise = f"> {self.value:.2g}", "by less than"
        added = f" and {self.num_added} more" if self.num_added else ""
        return (
            f"RadiusSearch({self.kind} {number}: the loss of {self.clean_loss:.4g} rises {rise} {self.tolerance:.4g}; "
            f"{len(self.grid) - self.num_added} radii{added}, {self.num_evaluations} evaluations)"
        )


class Rise:
    """The rise of the loss from the weights to a displacement of them; closing it puts the weights back.

    Args:
        risk: The loss, which is being observed.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        risk.check_weights()
        self.clean_loss: float = risk.mean()
        self.num_evaluations: int = 1
        self._risk = risk
        self._displacer = Displacer(dict(enumerate(risk.parameters.values())))

    def __call__(self, displacement: Displacement) -> float:
        """Return the rise, infinite where the loss is not a number."""
        self._displacer.displace(displacement)
        self.num_evaluations += 1
        rise = self._risk.mean(finite=False) - self.clean_loss
        return math.inf if math.isnan(rise) else rise

    def close(self) -> None:
        """Put the weights back."""
        self._displacer.release()


class _Point(NamedTuple):
    radius: float
    rises: list[float]

    @property
    def mean(self) -> float:
        return math.fsum(self.rises) / len(self.rises)


def search(
    kind: Literal["sigma", "rho"],
    rise: Rise,
    rises_at: Callable[[float], list[float]],
    radii: Iterable[float],
    allowed: float,
) -> RadiusSearch:
    """Measure the rises over the radii, and over as many beyond them as it takes to enclose what is allowed.

    Args:
        kind: What the radius is.
        rise: Counts the evaluations.
        rises_at: Returns the rises at a radius, one for each draw of the noise.
        radii: At least two, ascending.
        allowed: The rise that is allowed.
    """
    points = [_Point(radius, rises_at(radius)) for radius in radii]
    asked = len(points)
    while len(points) < asked + _EXTENSION:
        if points[0].mean > allowed:
            radius = points[0].radius * (points[0].radius / points[1].radius)
            points.insert(0, _Point(radius, rises_at(radius)))
        elif all(point.mean <= allowed for point in points):
            radius = points[-1].radius * (points[-1].radius / points[-2].radius)
            points.append(_Point(radius, rises_at(radius)))
        else:
            break
    samples = torch.tensor([point.rises for point in points], dtype=torch.float64)
    grid = torch.tensor([point.radius for point in points], dtype=torch.float64)
    rises, n = samples.mean(1), samples.shape[1]
    stderrs = samples.std(1) / math.sqrt(n) if n > 1 else torch.zeros_like(rises)
    value, stderr = _crossing(grid, rises, stderrs, allowed)
    return RadiusSearch(
        kind=kind,
        value=value,
        stderr=stderr,
        grid=grid,
        rises=rises,
        stderrs=stderrs,
        clean_loss=rise.clean_loss,
        tolerance=allowed,
        num_evaluations=rise.num_evaluations,
        num_added=len(points) - asked,
    )


def _crossing(grid: Tensor, rises: Tensor, stderrs: Tensor, allowed: float) -> tuple[float, float]:
    """Return where the rise first passes what is allowed, and the standard error of that."""
    above = (rises > allowed).nonzero()
    upper = int(above[0]) if len(above) else len(grid)
    if upper == 0:
        return math.nan, math.nan
    if upper == len(grid):
        return float(grid[-1]), math.nan
    ends = slice(upper - 1, upper + 1)
    (low, high), (below, over), errors = grid[ends].tolist(), rises[ends].tolist(), stderrs[ends].tolist()
    if below <= 0 or math.isinf(over):
        return low, math.nan if any(errors) else 0.0
    length = math.log(over / below)
    share, slope = math.log(allowed / below) / length, length / math.log(high / low)
    value = low * (high / low) ** share
    relative = (1 - share) * errors[0] / below + share * errors[1] / over
    return value, value * relative / slope
