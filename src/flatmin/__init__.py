"""flatmin: train into flat minima, and measure how flat they are.

>>> import torch, flatmin as fm
>>> model = torch.nn.Linear(4, 2)
>>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), sigma=0.01, seed=0)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatmin.errors import (
    ArgumentError,
    ArgumentTypeError,
    ClosureError,
    DataError,
    FlatminError,
    NonFiniteError,
    ProbeError,
    RankError,
)

if TYPE_CHECKING:
    from flatmin import bounds, compat, curvature, flows, landscape, problems
    from flatmin.bounds import Certificate, certify, certify_draw
    from flatmin.curvature import (
        GGN,
        DiagonalEstimate,
        EigenPairs,
        EmpiricalFisher,
        FiniteDifferenceHessian,
        ForwardOnlyHessian,
        FrobeniusEstimate,
        FunctionalHessian,
        GGNTrace,
        Hessian,
        LayerwiseResult,
        SpectralDensity,
        TraceEstimate,
        diagonal,
        frobenius_norm,
        ggn_trace,
        layerwise,
        normalized_trace,
        spectral_density,
        top_eigenvalues,
        trace,
    )
    from flatmin.measures import (
        Flatness,
        GapEstimate,
        Measurement,
        Monitor,
        PerturbationTrace,
        RadiusSearch,
        find_rho,
        find_sigma,
        is_flat,
        layerwise_gap,
        measure,
        perturbation_gap,
        perturbation_trace,
    )
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
    "GGN",
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
    "Certificate",
    "ClosureError",
    "DataError",
    "DiagonalEstimate",
    "DistancePenalty",
    "DistanceProjection",
    "EigenPairs",
    "EmpiricalFisher",
    "FiniteDifferenceHessian",
    "FlatminError",
    "Flatness",
    "ForwardOnlyHessian",
    "FrobeniusEstimate",
    "FunctionalHessian",
    "GGNTrace",
    "GapEstimate",
    "Gaussian",
    "Hessian",
    "LabelNoise",
    "Laplace",
    "LayerwiseResult",
    "Measurement",
    "Monitor",
    "NonFiniteError",
    "PerturbationTrace",
    "Plain",
    "ProbeError",
    "Rademacher",
    "RadiusSearch",
    "RandomlySmoothed",
    "RankError",
    "SharpnessAware",
    "SpectralDensity",
    "TargetNoise",
    "TraceEstimate",
    "Uniform",
    "attach",
    "bounds",
    "certify",
    "certify_draw",
    "compat",
    "curvature",
    "diagonal",
    "find_rho",
    "find_sigma",
    "flows",
    "frobenius_norm",
    "ggn_trace",
    "gradient",
    "is_flat",
    "landscape",
    "layerwise",
    "layerwise_gap",
    "measure",
    "normalized_trace",
    "optimal_sigma",
    "perturbation_gap",
    "perturbation_trace",
    "problems",
    "schedules",
    "spectral_density",
    "spread",
    "top_eigenvalues",
    "trace",
]

# Rooms are opened when something of them is asked for (PEP 562), so that a program that imports flatmin, and may not
# come to use it, does not wait for 200 modules. The imports above are for readers and type checkers; tests hold them,
# this table and __all__ together.
_HOMES = {
    "flatmin.bounds": "Certificate certify certify_draw",
    "flatmin.curvature": """
        GGN DiagonalEstimate EigenPairs EmpiricalFisher FiniteDifferenceHessian ForwardOnlyHessian
        FrobeniusEstimate FunctionalHessian GGNTrace Hessian LayerwiseResult SpectralDensity TraceEstimate
        diagonal frobenius_norm ggn_trace layerwise normalized_trace spectral_density top_eigenvalues trace
    """,
    "flatmin.measures": """
        Flatness GapEstimate Measurement Monitor PerturbationTrace RadiusSearch find_rho find_sigma is_flat
        layerwise_gap measure perturbation_gap perturbation_trace
    """,
    "flatmin.noise": "Binomial Gaussian Laplace Rademacher Uniform optimal_sigma schedules",
    "flatmin.optim": """
        ASAM BSAM NSO RSAM SAM USAM WPSGD Attachment AutoSigma Plain RandomlySmoothed SharpnessAware attach
        spread
    """,
    "flatmin.perturb": "gradient",
    "flatmin.regularizers": "DistancePenalty DistanceProjection LabelNoise TargetNoise",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}
_ROOMS = set(_HOMES) | {f"flatmin.{room}" for room in ("compat", "flows", "landscape", "problems")}


def __getattr__(name: str) -> Any:
    if f"flatmin.{name}" in _ROOMS:
        return import_module(f"flatmin.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'flatmin' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
