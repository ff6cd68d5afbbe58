"""The table of problems. Every generic test runs over all rows; a new problem is one row here."""

import pytest
import torch

from flatmin.problems import CoshValley, Hyperbolas, PlateauChain, Quadratic, sensing_task

PROBLEMS = {
    "quadratic": Quadratic(curvature=1.5, dim=4),
    "plateau-chain": PlateauChain([0.3, 0.2, 0.1], gradient_noise=0.8),
    "matrix-sensing": sensing_task(dim=4, rank=2, num_measurements=30, dtype=torch.float64).train,
    "matrix-sensing-paper": sensing_task(dim=3, rank=1, convention="paper", dtype=torch.float64).train,
    "hyperbolas": Hyperbolas(num_examples=2),
    "cosh-valley": CoshValley(4, power=0.7),
}

every_problem = pytest.mark.parametrize("problem", list(PROBLEMS.values()), ids=list(PROBLEMS))
