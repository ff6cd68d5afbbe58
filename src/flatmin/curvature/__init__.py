"""Curvature of the loss: operators that offer products, and estimators that ask for nothing else."""

from flatmin.curvature.results import EigenPairs, TraceEstimate

__all__ = ["EigenPairs", "TraceEstimate"]
