"""Operators: what estimators work on."""

from flatmin.curvature.operators.algebra import Block, Projection, Sum
from flatmin.curvature.operators.base import Operator
from flatmin.curvature.operators.differences import FiniteDifferenceHessian
from flatmin.curvature.operators.forward_only import ForwardOnlyHessian
from flatmin.curvature.operators.forward_parts import ForwardOnlyFunctional, ForwardOnlyGGN
from flatmin.curvature.operators.hessian import FunctionalHessian, Hessian
from flatmin.curvature.operators.outer import GGN, EmpiricalFisher
from flatmin.curvature.operators.protocol import LinearOperator, dimension
from flatmin.curvature.operators.risk_operator import RiskOperator

__all__ = [
    "GGN",
    "Block",
    "EmpiricalFisher",
    "FiniteDifferenceHessian",
    "ForwardOnlyFunctional",
    "ForwardOnlyGGN",
    "ForwardOnlyHessian",
    "FunctionalHessian",
    "Hessian",
    "LinearOperator",
    "Operator",
    "Projection",
    "RiskOperator",
    "Sum",
    "dimension",
]
