"""Problems with known derivatives and minima, on which optimizers can be tested."""

from flatmin.problems.base import Point, Problem
from flatmin.problems.quadratics import Quadratic

__all__ = ["Point", "Problem", "Quadratic"]
