"""Measures of flatness that need no second derivative."""

from flatmin.measures.gap import GapEstimate, perturbation_gap

__all__ = ["GapEstimate", "perturbation_gap"]
