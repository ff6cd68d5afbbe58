"""Optimizers: the shell that puts any method around any base optimizer, and the methods by name."""

from flatmin.optim.methods import NSO, SAM, WPSGD
from flatmin.optim.shell import Perturbed

__all__ = ["NSO", "SAM", "WPSGD", "Perturbed"]
