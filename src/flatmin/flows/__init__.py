"""The papers in Python: each method is a flow of a few lines, equal to its published pseudocode line by line."""

from flatmin.flows.sam import sam
from flatmin.flows.smoothing import nso, wpsgd

__all__ = ["nso", "sam", "wpsgd"]
