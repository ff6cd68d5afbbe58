"""The trace of an operator, from products alone or from what a network lets be known without them."""

from flatmin.curvature.trace.call import trace

__all__ = ["trace"]
