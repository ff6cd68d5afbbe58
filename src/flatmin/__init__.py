"""flatmin: train into flat minima, and measure how flat they are.

>>> import torch, flatmin as fm
>>> model = torch.nn.Linear(4, 2)
>>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), sigma=0.01, seed=0)
"""

from flatmin import flows
from flatmin.errors import (
    ArgumentError,
    ArgumentTypeError,
    ClosureError,
    DataError,
    FlatminError,
    NonFiniteError,
    ProbeError,
)
from flatmin.noise import Binomial, Gaussian, Laplace, Rademacher, Uniform, schedules
from flatmin.optim import NSO, SAM, WPSGD
from flatmin.perturb import gradient

__version__ = "0.1.0"

__all__ = [
    "NSO",
    "SAM",
    "WPSGD",
    "ArgumentError",
    "ArgumentTypeError",
    "Binomial",
    "ClosureError",
    "DataError",
    "FlatminError",
    "Gaussian",
    "Laplace",
    "NonFiniteError",
    "ProbeError",
    "Rademacher",
    "Uniform",
    "flows",
    "gradient",
    "schedules",
]
