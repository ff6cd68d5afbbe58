"""The papers in Python: each method is a flow of a few lines, equal to its published pseudocode line by line."""

from flatmin.flows.escape import randomly_smoothed, sharpness_aware
from flatmin.flows.sam import asam, bsam, rsam, sam, usam
from flatmin.flows.smoothing import nso, sgd, wpsgd

__all__ = ["asam", "bsam", "nso", "randomly_smoothed", "rsam", "sam", "sgd", "sharpness_aware", "usam", "wpsgd"]
