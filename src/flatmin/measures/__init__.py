"""Measures of flatness that need no second derivative."""

from flatmin.measures.gap import GapEstimate, perturbation_gap
from flatmin.measures.radius import find_rho, find_sigma
from flatmin.measures.rise import RadiusSearch

__all__ = ["GapEstimate", "RadiusSearch", "find_rho", "find_sigma", "perturbation_gap"]
