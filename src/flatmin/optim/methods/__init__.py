"""The methods by name: each is a flow in the optimizer shell, and nothing more."""

from flatmin.optim.methods.bayesian import BSAM
from flatmin.optim.methods.escape import RandomlySmoothed, SharpnessAware
from flatmin.optim.methods.sam import ASAM, RSAM, SAM, USAM
from flatmin.optim.methods.smoothing import NSO, WPSGD, Plain

__all__ = ["ASAM", "BSAM", "NSO", "RSAM", "SAM", "USAM", "WPSGD", "Plain", "RandomlySmoothed", "SharpnessAware"]
