"""Power laws through numbers of steps, beside those of the bounds and of the drift."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from flatmin_lab.recipes.escape2023.cells import BY_EPS, DIMENSION, Cell
from flatmin_lab.recipes.escape2023.scalings import METHODS

if TYPE_CHECKING:
    from flatmin_lab.recipes.escape2023.reach import Reached


@dataclass(frozen=True)
class Fit:
    """A power law through geometric means over seeds.

    Attributes:
        slope: The exponent.
        half_width: Half of its 95 % interval by Student's law; NaN for two cells.
    """

    slope: float
    half_width: float

    @classmethod
    def of(cls, x: list[float], steps: list[np.ndarray]) -> Fit:
        """Fit on log-log axes; the interval counts the curvature of the line as error."""
        found: Any = stats.linregress(np.log(x), [np.log(s).mean() for s in steps])
        degrees = len(x) - 2
        half = float(stats.t.ppf(0.975, degrees) * found.stderr) if degrees else math.nan
        return cls(float(found.slope), half)

    def __str__(self) -> str:
        number = f"{self.slope:.2f}".replace("-", "−")
        return number if math.isnan(self.half_width) else f"{number} ± {self.half_width:.2f}"


@dataclass(frozen=True)
class Exponents:
    """The exponents of one curve.

    Attributes:
        bound: Of the theorem's bound.
        drift: Of what the drift alone would take.
        perturbed: Of the perturbed steps.
        steps: Of all steps.
    """

    bound: float
    drift: Fit
    perturbed: Fit
    steps: Fit


Fits = dict[tuple[str, str, str], Exponents]
"""By study, method and regime."""


def regime(cell: Cell) -> str:
    """Return which of the two cases of Theorem 2 a cell is in, and over d also its ε: one power law holds for each."""
    case = "d ≥ ε^(−1/3)" if cell.method == "RS" or cell.dim**3 * cell.eps >= 1 else "d < ε^(−1/3)"
    return f"{case}, ε = {cell.eps:g}" if cell.study == DIMENSION else case


def exponents(found: Mapping[Cell, Reached], drifts: Mapping[Cell, float]) -> Fits:
    """Fit each study and method, over cells that are in one regime of the theorem.

    Args:
        found: The walks of each cell.
        drifts: What the drift alone would take.
    """
    fits: Fits = {}
    for study, method in itertools.product((*BY_EPS, DIMENSION), METHODS):
        cells = [cell for cell in found if (cell.study, cell.method) == (study, method)]
        for case, group in itertools.groupby(sorted(cells, key=lambda c: (regime(c), c.dim, c.eps)), regime):
            chosen = list(group)
            if len(chosen) > 1:
                x = [float(cell.dim) if study == DIMENSION else cell.eps for cell in chosen]
                fits[study, method, case] = Exponents(
                    theory(study, method, case),
                    Fit.of(x, [np.array([drifts[cell]]) for cell in chosen]),
                    Fit.of(x, [found[cell].perturbed_steps for cell in chosen]),
                    Fit.of(x, [found[cell].steps for cell in chosen]),
                )
    return fits


def theory(study: str, method: str, regime: str) -> float:
    """Return the exponent of the bound."""
    if method == "RS":
        return 0.0 if study == DIMENSION else -3.0
    if study == DIMENSION:
        return -4.0 if regime.startswith("d <") else -1.0
    return -3.0 if regime.startswith("d <") else -2.0
