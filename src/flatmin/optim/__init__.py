"""Optimizers: the shell that puts any method around any base optimizer, and the methods by name."""

from flatmin.optim.attach import Attachment, attach
from flatmin.optim.automatic import AutoSigma
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
from flatmin.optim.spread import spread

__all__ = [
    "ASAM",
    "BSAM",
    "NSO",
    "RSAM",
    "SAM",
    "USAM",
    "WPSGD",
    "Attachment",
    "AutoSigma",
    "Perturbed",
    "Plain",
    "RandomlySmoothed",
    "SharpnessAware",
    "attach",
    "spread",
]
