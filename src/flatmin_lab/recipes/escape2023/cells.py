"""What is walked in the recipe of the rates: problems, methods, accuracies and dimensions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatmin.problems import CoshValley, Hyperbolas, Valley
from flatmin_lab.recipes.escape2023.scalings import METHODS, Scaling, scaling
from flatmin_lab.seeds import generator

DELTA = 0.5
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

    def minimum(self, valley: Valley) -> Tensor:
        """Return the sharp minimum that walks start near; shape (d,)."""
        if not isinstance(valley, CoshValley):
            return torch.tensor([2.0, 0.5], dtype=torch.float64)
        minimum = torch.zeros(self.dim, dtype=torch.float64)
        minimum[0] = math.acosh(math.exp(1 / valley.power)) if self.study == WORST else 2.0
        return minimum

    def start(self, valley: Valley, seeds: int, seed: int) -> Tensor:
        """Return where the walks start, ε away from the sharp minimum; shape (seeds, d)."""
        noise = torch.randn(seeds, self.dim, generator=generator(seed, f"start {self}"), dtype=torch.float64)
        return self.minimum(valley) + self.eps * noise / noise.norm(dim=1, keepdim=True)

    def scaling(self, valley: Valley) -> Scaling:
        """Return the method's parameters, for the largest eigenvalue β of the Hessian at the sharp minimum."""
        # The examples' slopes are orthogonal and equally steep there, so that the trace is n times β.
        beta = float(valley.trace(self.minimum(valley))) / valley.num_examples
        return scaling(self.method, self.eps, DELTA, beta, self.dim)


@dataclass(frozen=True)
class Size:
    """What is walked.

    Attributes:
        seeds: Independent walks of each cell.
        eps: The accuracies of each study and method.
        dims: The dimensions at each accuracy, of each method. SA asks for a small ε in many dimensions: the gradient of
            a single example pushes it out of the valley by about δ²ε^(5/6) d, which must stay below one.
        dim: d of the valleys in the studies over ε.
    """

    seeds: int
    eps: dict[tuple[str, str], tuple[float, ...]]
    dims: dict[str, dict[float, tuple[int, ...]]]
    dim: int = 16

    def cells(self) -> list[Cell]:
        """Return everything that is walked."""
        by_eps = [
            Cell(study, method, eps, 2 if study == EXAMPLE_1 else self.dim)
            for (study, method), grid in self.eps.items()
            for eps in grid
        ]
        by_dim = [
            Cell(DIMENSION, method, eps, dim)
            for method, at in self.dims.items()
            for eps, dims in at.items()
            for dim in dims
        ]
        return by_eps + by_dim


def _grids(*grids: tuple[float, ...]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Assign grids of ε to the studies: by RS, then by SA."""
    return dict(zip(itertools.product(BY_EPS, METHODS), grids, strict=True))


SIZES = {
    "toy": Size(
        4,
        _grids((0.4, 0.25), (0.1, 0.07), (0.4, 0.25), (0.1, 0.03), (0.4, 0.25), (0.1, 0.03)),
        dims={"RS": {0.4: (2, 8, 32)}, "SA": {0.1: (4, 8, 16)}},
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
        dims={
            "RS": {0.1: (2, 8, 32, 128, 1000)},
            "SA": {0.01: (2, 3, 4, 8, 16, 32, 64), 0.0005: (32, 64, 128, 256, 512, 1000)},
        },
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
        dims={
            "RS": {0.05: (2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)},
            "SA": {0.005: (2, 3, 4, 5, 8, 16, 32, 64), 0.0003: (16, 32, 64, 128, 256, 512, 1000)},
        },
    ),
}
