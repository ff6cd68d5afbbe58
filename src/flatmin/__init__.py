"""flatmin: train into flat minima, and measure how flat they are.

>>> import torch, flatmin as fm
>>> model = torch.nn.Linear(4, 2)
>>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), sigma=0.01, seed=0)
"""

from flatmin import compat, flows, landscape
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
from flatmin.measures import GapEstimate, RadiusSearch, find_rho, find_sigma, perturbation_gap
from flatmin.noise import Binomial, Gaussian, Laplace, Rademacher, Uniform, optimal_sigma, schedules
from flatmin.optim import (
    ASAM,
    BSAM,
    NSO,
    RSAM,
    SAM,
    USAM,
    WPSGD,
    Attachment,
    AutoSigma,
    Plain,
    RandomlySmoothed,
    SharpnessAware,
    attach,
    spread,
)
from flatmin.perturb import gradient
from flatmin.regularizers import DistancePenalty, DistanceProjection, LabelNoise, TargetNoise

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
    "Attachment",
    "AutoSigma",
    "Binomial",
    "ClosureError",
    "DataError",
    "DistancePenalty",
    "DistanceProjection",
    "EigenPairs",
    "FlatminError",
    "GapEstimate",
    "Gaussian",
    "Hessian",
    "LabelNoise",
    "Laplace",
    "NonFiniteError",
    "Plain",
    "ProbeError",
    "Rademacher",
    "RadiusSearch",
    "RandomlySmoothed",
    "SharpnessAware",
    "TargetNoise",
    "TraceEstimate",
    "Uniform",
    "attach",
    "compat",
    "find_rho",
    "find_sigma",
    "flows",
    "gradient",
    "landscape",
    "optimal_sigma",
    "perturbation_gap",
    "schedules",
    "spread",
    "top_eigenvalues",
    "trace",
]
