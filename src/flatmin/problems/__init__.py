"""Problems with known derivatives and minima, on which optimizers can be tested, and what theory says of them."""

from flatmin.problems.base import Point, Problem
from flatmin.problems.chain import PlateauChain, TruncatedGaussian
from flatmin.problems.convergence import Setting, expected_square_gradients
from flatmin.problems.descent import descent
from flatmin.problems.matrix_sensing import MatrixSensing
from flatmin.problems.quadratics import Quadratic
from flatmin.problems.sensing_task import SensingTask, sensing_task
from flatmin.problems.valley import Valley
from flatmin.problems.valleys import CoshValley, Hyperbolas

__all__ = [
    "CoshValley",
    "Hyperbolas",
    "MatrixSensing",
    "PlateauChain",
    "Point",
    "Problem",
    "Quadratic",
    "SensingTask",
    "Setting",
    "TruncatedGaussian",
    "Valley",
    "descent",
    "expected_square_gradients",
    "sensing_task",
]
