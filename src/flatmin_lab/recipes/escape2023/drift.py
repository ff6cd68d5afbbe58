r"""How many perturbed steps the mean drift alone would take.

Along the minima a perturbed step moves by :math:`\frac{\eta\rho^2}{2}` times the slope of the trace over d by RS, and d
times that by SA. So from arc length a down to b, where the slope g is √ε, it takes

.. math:: T = \frac{2}{\eta\rho^2 m} \int_b^a \frac{\mathrm d s}{g(s)},\qquad m = 1 \text{ or } d.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from flatmin.problems import Hyperbolas

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.problems import Valley
    from flatmin_lab.recipes.escape2023.scalings import Scaling

_POINTS = 20_001


def expected_steps(valley: Valley, method: str, start: Tensor, scaling: Scaling, eps: float) -> float:
    """Return T.

    Args:
        valley: Example 1, or a valley along the first coordinate.
        method: ``"RS"`` or ``"SA"``.
        start: A minimum, (d,).
        scaling: Of the method.
        eps: ε.
    """
    way = _way(valley, float(start[0]))
    slopes = torch.cat([valley.trace_gradient(part).norm(dim=-1) for part in way.split(1000)])
    lengths = way.diff(dim=0).norm(dim=-1)
    middle = (slopes[1:] + slopes[:-1]) / 2
    steep = middle > math.sqrt(eps)  # the slope falls all the way to the flat minimum
    factor = 2 / (scaling.eta * scaling.rho**2 * (valley.dim if method == "SA" else 1))
    return factor * float((lengths / middle)[steep].sum())


def _way(valley: Valley, first: float) -> Tensor:
    """Return minima from the one with this first coordinate to the flat one; shape (points, d)."""
    if isinstance(valley, Hyperbolas):
        x = torch.linspace(math.log(first), 0.0, _POINTS, dtype=torch.float64).exp()
        return torch.stack([x, 1 / x], -1)
    # Points of a thousand dimensions are many numbers, and the slope needs few of them.
    way = torch.zeros(max(2, min(_POINTS, 20_000_000 // valley.dim)), valley.dim, dtype=torch.float64)
    way[:, 0] = torch.linspace(first, 0.0, len(way), dtype=torch.float64)
    return way
