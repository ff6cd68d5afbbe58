"""Curvature of the loss: operators that offer products, and estimators that ask for nothing else."""

from flatmin.curvature.eigenvalues import top_eigenvalues
from flatmin.curvature.layout import Layout
from flatmin.curvature.operators import Hessian, LinearOperator
from flatmin.curvature.results import EigenPairs, Estimate, TraceEstimate
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.curvature.trace import trace

__all__ = [
    "EigenPairs",
    "EmpiricalRisk",
    "Estimate",
    "Hessian",
    "Layout",
    "LinearOperator",
    "TraceEstimate",
    "top_eigenvalues",
    "trace",
]
