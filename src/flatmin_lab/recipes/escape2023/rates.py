"""Steps to an (ε, √ε)-flat minimum by RS and SA, over ε and d, beside the bounds of Theorems 1 and 2.

The bounds hold for the worst problem of a class, so three are walked: Example 1; a valley whose trace is strongly
convex along the minima (κ = 1), where the slope falls geometrically; and valleys that are worst for their ε, whose
trace has a slope of about 4√ε, just too steep, all the way from a trace of e to one of 1 (κ = 4√ε).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from flatmin.measures import is_flat
from flatmin_lab.recipes.escape2023.cells import BY_EPS, CONVEX, DIMENSION, EXAMPLE_1, SIZES, WORST, Cell
from flatmin_lab.recipes.escape2023.drawings import draw_rates
from flatmin_lab.recipes.escape2023.reach import Reached, reach
from flatmin_lab.recipes.escape2023.scalings import METHODS, bound, scaling
from flatmin_lab.recipes.outcome import Outcome, Table
from flatmin_lab.seeds import derive

if TYPE_CHECKING:
    from flatmin_lab.recipes.outcome import Watch

DELTA = 0.5
_MAX_STEPS = 10_000_000
_DENSE = 64  # dimensions up to which the verdict is asked of the definition itself, not of the closed forms alone


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


def rates(size: str, seed: int, watch: Watch) -> Outcome:
    """Walk every cell of ``size``, fit the slopes, and lay them beside the bounds."""
    chosen, found = SIZES[size], dict[Cell, Reached]()
    for cell in chosen.cells():
        found[cell] = _walked(cell, chosen.seeds, seed, watch)
    fits = _fits(found)
    asked = [cell for cell in found if cell.dim <= _DENSE]
    agreed = sum(bool(is_flat(c.valley().value, found[c].points[0], c.eps, math.sqrt(c.eps))) for c in asked)
    return Outcome(
        tables=(_fit_table(fits), _cell_table(found)),
        figures={"rates": lambda: draw_rates(found, fits)},
        series={"steps": _series(found)},
        text=_text(found, fits, f"{agreed} of {len(asked)}"),
    )


def _walked(cell: Cell, seeds: int, seed: int, watch: Watch) -> Reached:
    valley = cell.valley()
    start, beta = cell.start(valley, seeds, seed)
    what = f"{cell.method}, {cell.study}, ε = {cell.eps:g}, d = {cell.dim}"
    return reach(
        valley,
        cell.method,
        start,
        scaling(cell.method, cell.eps, DELTA, beta, cell.dim),
        eps=cell.eps,
        seed=derive(seed, what),
        max_steps=_MAX_STEPS,
        watch=lambda done: watch(what, done, seeds),
    )


def _regime(cell: Cell) -> str:
    """Return which of the two cases of Theorem 2 a cell is in."""
    return "d ≥ ε^(−1/3)" if cell.method == "RS" or cell.dim**3 * cell.eps >= 1 else "d < ε^(−1/3)"


Fits = dict[tuple[str, str, str], Fit]


def _fits(found: dict[Cell, Reached]) -> Fits:
    """Fit each study and method, over cells that are in one regime of the theorem: by study, method and regime."""
    fits: Fits = {}
    for study, method in itertools.product((*BY_EPS, DIMENSION), METHODS):
        cells = [cell for cell in found if (cell.study, cell.method) == (study, method)]
        for regime, group in itertools.groupby(sorted(cells, key=lambda c: (_regime(c), c.dim, c.eps)), _regime):
            chosen = list(group)
            if len(chosen) > 1:
                x = [float(cell.dim) if study == DIMENSION else cell.eps for cell in chosen]
                fits[study, method, regime] = Fit.of(x, [found[cell].steps for cell in chosen])
    return fits


def _theory(study: str, method: str, regime: str) -> float:
    """Return the exponent of the bound."""
    if method == "RS":
        return 0.0 if study == DIMENSION else -3.0
    if study == DIMENSION:
        return -4.0 if regime.startswith("d <") else -1.0
    return -3.0 if regime.startswith("d <") else -2.0


def _fit_table(fits: Fits) -> Table:
    rows = tuple(
        (study, method, regime if method == "SA" else "", "d" if study == DIMENSION else "ε", theory, str(fit))
        for (study, method, regime), fit in fits.items()
        for theory in [_theory(study, method, regime)]
    )
    columns = ("problem", "method", "regime", "over", "exponent of the bound", "found (95 % interval)")
    return Table("slopes", columns, rows, "Exponents of the number of steps to an (ε, √ε)-flat minimum.")


def _cell_table(found: dict[Cell, Reached]) -> Table:
    rows = tuple(
        (
            cell.study,
            cell.method,
            cell.eps,
            cell.dim,
            float(np.exp(np.log(r.steps).mean())),
            float(r.steps.min()),
            float(r.steps.max()),
            float(r.final_steps.mean()),
            f"{int(r.are_flat(cell.eps).sum())} of {len(r.steps)}",
            float(bound(cell.method, cell.eps, cell.dim)),
        )
        for cell, r in found.items()
    )
    columns = ("problem", "method", "ε", "d", "steps", "fewest", "most", "final steps", "flat", "order of the bound")
    return Table("steps", columns, rows, "Steps until descent alone leads into a flat minimum; geometric means.")


def _series(found: dict[Cell, Reached]) -> dict[str, np.ndarray]:
    each = [(cell, i, steps) for cell, r in found.items() for i, steps in enumerate(r.steps)]
    return {
        "problem": np.array([cell.study for cell, _, _ in each]),
        "method": np.array([cell.method for cell, _, _ in each]),
        "eps": np.array([cell.eps for cell, _, _ in each]),
        "dim": np.array([cell.dim for cell, _, _ in each]),
        "seed": np.array([i for _, i, _ in each]),
        "steps": np.array([steps for _, _, steps in each]),
    }


def _text(found: dict[Cell, Reached], fits: Fits, verdicts: str) -> str:
    def slopes(study: str, method: str) -> str:
        parts = [(regime, fit) for (s, m, regime), fit in fits.items() if (s, m) == (study, method)]
        return " and ".join(f"{fit}" + (f" ({regime})" if len(parts) > 1 else "") for regime, fit in parts)

    ends = [r.are_flat(cell.eps) for cell, r in found.items()]
    dims = sorted({cell.dim for cell in found})
    return (
        "**The paper**: RS reaches an (ε, √ε)-flat minimum in O(ε⁻³) steps (Theorem 1), SA in "
        "O(d⁻¹ε⁻² max(1, 1/(d³ε))) (Theorem 2), with the parameters scaled as here. These are upper bounds, for the "
        "worst problem of a class.\n\n"
        f"**Here** (δ = {DELTA:g}, d from {dims[0]} to {dims[-1]}, {len(ends[0])} seeds a cell): "
        f"{sum(int(e.sum()) for e in ends)} of {sum(map(len, ends))} walks ended in an (ε, √ε)-flat minimum by the "
        f"closed forms; of the first seeds up to d = {_DENSE}, {verdicts} by the definition itself, Φ by integration."
        f"\n\nExponents of ε by RS, where the bound has −3: {slopes(WORST, 'RS')} on the valleys that are worst for "
        f"their ε (κ = 4√ε); {slopes(CONVEX, 'RS')} on the convex one (κ = 1), {slopes(EXAMPLE_1, 'RS')} on Example 1. "
        f"By SA: {slopes(WORST, 'SA')} on the worst and {slopes(CONVEX, 'SA')} on the convex valley, where the bound "
        f"has −2, and {slopes(EXAMPLE_1, 'SA')} on Example 1, where it has −3, as d = 2 is below ε^(−1/3).\n\n"
        f"Exponents of d on the convex valley: by RS {slopes(DIMENSION, 'RS')}, where the bound has 0; by SA "
        f"{slopes(DIMENSION, 'SA')}, where it has −4 below ε^(−1/3) and −1 above.\n\n"
        "**How to read it**: a step of RS moves by ηρ²/2 times the slope of the trace over d, one of SA by d times "
        "that. Where the slope stays near √ε, the exponents of the bounds are to be expected. On the convex valley and "
        "on Example 1 it falls geometrically instead, and one power of 1/ε less is to be expected, up to a logarithm. "
        "Less than an upper bound does not contradict it. The intervals count the bend of a line as error, so "
        "logarithms too.\n\n"
        "**What differs from the paper**: the theorems give orders; the constants here are made of β, the largest "
        "eigenvalue at the start. The single f_i of the valleys are smooth to a constant that grows with d, which the "
        "theorem's constants hide."
    )
