"""The exact trace of the generalised Gauss-Newton matrix, by norms of gradients that are never formed."""

from flatmin.curvature.ghost.linearity import Linearity, linearity
from flatmin.curvature.ghost.result import GGNTrace
from flatmin.curvature.ghost.trace import ggn_trace

__all__ = ["GGNTrace", "Linearity", "ggn_trace", "linearity"]
