"""Curvature layer by layer."""

from flatmin.curvature.layerwise.layers import layerwise
from flatmin.curvature.layerwise.results import Layer, LayerwiseResult

__all__ = ["Layer", "LayerwiseResult", "layerwise"]
