"""Measures of flatness: from losses alone, and everything of a minimum in one call."""

from flatmin.measures.gap import GapEstimate, perturbation_gap
from flatmin.measures.joint import measure
from flatmin.measures.layerwise_gap import layerwise_gap
from flatmin.measures.measurement import Measurement
from flatmin.measures.perturbation_trace import PerturbationTrace, perturbation_trace
from flatmin.measures.radius import find_rho, find_sigma
from flatmin.measures.rise import RadiusSearch

__all__ = [
    "GapEstimate",
    "Measurement",
    "PerturbationTrace",
    "RadiusSearch",
    "find_rho",
    "find_sigma",
    "layerwise_gap",
    "measure",
    "perturbation_gap",
    "perturbation_trace",
]
