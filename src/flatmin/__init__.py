"""flatmin: train into flat minima, and measure how flat they are.

>>> import torch, flatmin as fm
>>> model = torch.nn.Linear(4, 2)
>>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), sigma=0.01, seed=0)
"""

from flatmin import flows, landscape
from flatmin.curvature import EigenPairs, Hessian, TraceEstimate, top_eigenvalues, trace
from flatmin.errors import (
    ArgumentError,
    ArgumentTypeError,
    ClosureError,
    DataError,
    FlatminError,
    NonFiniteError,
    ProbeError,
)
from flatmin.measures import GapEstimate, perturbation_gap
from flatmin.noise import Binomial, Gaussian, Laplace, Rademacher, Uniform, schedules
from flatmin.optim import ASAM, BSAM, NSO, RSAM, SAM, USAM, WPSGD, Plain, RandomlySmoothed, SharpnessAware
from flatmin.perturb import gradient

__version__ = "0.1.0"

__all__ = [
    "ASAM",
    "BSAM",
    "NSO",
    "RSAM",
    "SAM",
    "USAM",
    "WPSGD",
    "ArgumentError",
    "ArgumentTypeError",
    "Binomial",
    "ClosureError",
    "DataError",
    "EigenPairs",
    "FlatminError",
    "GapEstimate",
    "Gaussian",
    "Hessian",
    "Laplace",
    "NonFiniteError",
    "Plain",
    "ProbeError",
    "Rademacher",
    "RandomlySmoothed",
    "SharpnessAware",
    "TraceEstimate",
    "Uniform",
    "flows",
    "gradient",
    "landscape",
    "perturbation_gap",
    "schedules",
    "top_eigenvalues",
    "trace",
]
