"""Optimizers: the shell that puts any method around any base optimizer, and the methods by name."""

from flatmin.optim.methods import (
    ASAM,
    BSAM,
    NSO,
    RSAM,
    SAM,
    USAM,
    WPSGD,
    Plain,
    RandomlySmoothed,
    SharpnessAware,
)
from flatmin.optim.shell import Perturbed

__all__ = [
    "ASAM",
    "BSAM",
    "NSO",
    "RSAM",
    "SAM",
    "USAM",
    "WPSGD",
    "Perturbed",
    "Plain",
    "RandomlySmoothed",
    "SharpnessAware",
]
