"""Regularizers to combine with any method: noise in the targets, and distance to the start of fine-tuning."""

from flatmin.regularizers.label_noise import LabelNoise, TargetNoise
from flatmin.regularizers.penalty import DistancePenalty
from flatmin.regularizers.projection import DistanceProjection

__all__ = ["DistancePenalty", "DistanceProjection", "LabelNoise", "TargetNoise"]
