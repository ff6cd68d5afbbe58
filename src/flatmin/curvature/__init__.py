"""Curvature of the loss: operators that offer products, and estimators that ask for nothing else."""

from flatmin.curvature.density import SpectralDensity, spectral_density
from flatmin.curvature.diagonal import DiagonalEstimate, diagonal
from flatmin.curvature.eigenvalues import top_eigenvalues
from flatmin.curvature.frobenius import FrobeniusEstimate, frobenius_norm
from flatmin.curvature.ghost import GGNTrace, ggn_trace
from flatmin.curvature.layerwise import LayerwiseResult, layerwise
from flatmin.curvature.layout import Layout
from flatmin.curvature.normalized import normalized_trace
from flatmin.curvature.operators import (
    GGN,
    Block,
    EmpiricalFisher,
    FiniteDifferenceHessian,
    ForwardOnlyFunctional,
    ForwardOnlyGGN,
    ForwardOnlyHessian,
    FunctionalHessian,
    Hessian,
    LinearOperator,
    Operator,
    Projection,
    Sum,
)
from flatmin.curvature.ranks import DataOverRanks, VectorsOverRanks
from flatmin.curvature.results import EigenPairs, Estimate, TraceEstimate
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.curvature.trace import trace

__all__ = [
    "GGN",
    "Block",
    "DataOverRanks",
    "DiagonalEstimate",
    "EigenPairs",
    "EmpiricalFisher",
    "EmpiricalRisk",
    "Estimate",
    "FiniteDifferenceHessian",
    "ForwardOnlyFunctional",
    "ForwardOnlyGGN",
    "ForwardOnlyHessian",
    "FrobeniusEstimate",
    "FunctionalHessian",
    "GGNTrace",
    "Hessian",
    "LayerwiseResult",
    "Layout",
    "LinearOperator",
    "Operator",
    "Projection",
    "SpectralDensity",
    "Sum",
    "TraceEstimate",
    "VectorsOverRanks",
    "diagonal",
    "frobenius_norm",
    "ggn_trace",
    "layerwise",
    "normalized_trace",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
