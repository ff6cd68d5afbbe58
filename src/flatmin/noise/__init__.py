"""What is added to the weights: laws of noise, and schedules of their size."""

from flatmin.noise import schedules
from flatmin.noise.automatic import optimal_sigma
from flatmin.noise.laws import LAWS, Binomial, Gaussian, Laplace, Law, Rademacher, Uniform, resolve_law
from flatmin.noise.schedules import Schedule, value_at

__all__ = [
    "LAWS",
    "Binomial",
    "Gaussian",
    "Laplace",
    "Law",
    "Rademacher",
    "Schedule",
    "Uniform",
    "optimal_sigma",
    "resolve_law",
    "schedules",
    "value_at",
]
