"""What is walked in the recipe of the rates: problems, methods, accuracies and dimensions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.problems import CoshValley, Hyperbolas, Valley
from flatmin_lab.recipes.escape2023.scalings import METHODS
from flatmin_lab.seeds import generator

EXAMPLE_1, CONVEX, WORST, DIMENSION = "Example 1", "κ = 1", "κ = 4√ε", "over d"
BY_EPS = (EXAMPLE_1, CONVEX, WORST)


@dataclass(frozen=True)
class Cell:
    """One problem, method and accuracy.

    Attributes:
        study: Which curve it belongs to.
        method: ``"RS"`` or ``"SA"``.
        eps: ε.
        dim: d.
    """

    study: str
    method: str
    eps: float
    dim: int

    def valley(self) -> Valley:
        """Return the problem."""
        if self.study == EXAMPLE_1:
            return Hyperbolas()
        return CoshValley(self.dim, 4 * math.sqrt(self.eps) if self.study == WORST else 1.0)

    def start(self, valley: Valley, seeds: int, seed: int) -> tuple[Tensor, float]:
        """Return where the seeds start, near a sharp minimum, and the largest eigenvalue β of the Hessian there."""
        minimum = torch.zeros(self.dim, dtype=torch.float64)
        if isinstance(valley, CoshValley):
            minimum[0] = math.acosh(math.exp(1 / valley.power)) if self.study == WORST else 2.0
        else:
            minimum[:] = torch.tensor([2.0, 0.5])
        noise = torch.randn(seeds, self.dim, generator=generator(seed, f"start {self}"), dtype=torch.float64)
        # On the minima the trace is n times β; the valleys' examples are orthogonal and equally steep there.
        beta = float(valley.trace(minimum)) / valley.num_examples
        return minimum + self.eps * noise / noise.norm(dim=1, keepdim=True), beta


@dataclass(frozen=True)
class Size:
    """What is walked.

    Attributes:
        seeds: Independent walks of each cell.
        eps: The accuracies of each study and method.
        dims: Dimensions.
        dim_eps: ε of each method in the study over d.
        dim: d of the valleys in the studies over ε.
    """

    seeds: int
    eps: dict[tuple[str, str], tuple[float, ...]]
    dims: tuple[int, ...]
    dim_eps: dict[str, float]
    dim: int = 16

    def cells(self) -> list[Cell]:
        """Return everything that is walked."""
        by_eps = [
            Cell(study, method, eps, 2 if study == EXAMPLE_1 else self.dim)
            for (study, method), grid in self.eps.items()
            for eps in grid
        ]
        return by_eps + [Cell(DIMENSION, m, self.dim_eps[m], d) for m in METHODS for d in self.dims]


def _grids(*grids: tuple[float, ...]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Assign grids of ε to the studies: by RS, then by SA."""
    return dict(zip(itertools.product(BY_EPS, METHODS), grids, strict=True))


SIZES = {
    "toy": Size(
        4,
        _grids((0.4, 0.2), (0.1, 0.06), (0.4, 0.2), (0.1, 0.03), (0.4, 0.2), (0.1, 0.03)),
        dims=(2, 8, 32),
        dim_eps={"RS": 0.4, "SA": 0.1},
    ),
    "small": Size(
        16,
        _grids(
            (0.2, 0.1, 0.05, 0.025),
            (0.1, 0.05, 0.025, 0.0125),
            (0.2, 0.1, 0.05, 0.025),
            (0.1, 0.03, 0.01, 0.003, 0.001),
            (0.1, 0.05, 0.025),
            (0.03, 0.01, 0.005, 0.002),
        ),
        dims=(2, 4, 8, 16, 64, 256, 1000),
        dim_eps={"RS": 0.1, "SA": 0.01},
    ),
    "paper": Size(
        64,
        _grids(
            (0.2, 0.1, 0.05, 0.025, 0.0125),
            (0.1, 0.05, 0.025, 0.0125, 0.00625),
            (0.2, 0.1, 0.05, 0.025, 0.0125),
            (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003),
            (0.1, 0.05, 0.025, 0.0125),
            (0.03, 0.01, 0.003, 0.001, 0.0003),
        ),
        dims=(2, 4, 8, 16, 32, 64, 128, 256, 512, 1000),
        dim_eps={"RS": 0.05, "SA": 0.005},
    ),
}
