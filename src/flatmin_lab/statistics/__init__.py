"""What a handful of paired seeds can say: intervals, exact tests, corrections for many methods, and runs of many tasks.

Everything is a function of a few numbers and knows nothing of runs; random resamples come from a given seed.
"""

from flatmin_lab.statistics.across import interquartile_mean, probability_of_improvement
from flatmin_lab.statistics.intervals import Interval, bca_interval, mean_interval
from flatmin_lab.statistics.multiple import holm, min_seeds
from flatmin_lab.statistics.sign_flip import MAX_EXACT, SignFlip, sign_flip_test

__all__ = [
    "MAX_EXACT",
    "Interval",
    "SignFlip",
    "bca_interval",
    "holm",
    "interquartile_mean",
    "mean_interval",
    "min_seeds",
    "probability_of_improvement",
    "sign_flip_test",
]
