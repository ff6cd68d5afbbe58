"""Measures of flatness: from losses alone, by its definition, everything of a minimum in one call, live in training."""

from flatmin.measures.flatness import Flatness, is_flat
from flatmin.measures.flow_limit import FlowLimit, gradient_flow_limit
from flatmin.measures.gap import GapEstimate, perturbation_gap
from flatmin.measures.joint import measure
from flatmin.measures.layerwise_gap import layerwise_gap
from flatmin.measures.measurement import Measurement
from flatmin.measures.monitor import Monitor
from flatmin.measures.perturbation_trace import PerturbationTrace, perturbation_trace
from flatmin.measures.radius import find_rho, find_sigma
from flatmin.measures.reading import Reading
from flatmin.measures.rise import RadiusSearch
from flatmin.measures.trackers import Guarded, Tracker

__all__ = [
    "Flatness",
    "FlowLimit",
    "GapEstimate",
    "Guarded",
    "Measurement",
    "Monitor",
    "PerturbationTrace",
    "RadiusSearch",
    "Reading",
    "Tracker",
    "find_rho",
    "find_sigma",
    "gradient_flow_limit",
    "is_flat",
    "layerwise_gap",
    "measure",
    "perturbation_gap",
    "perturbation_trace",
]
