r"""Sharpness-aware minimization: descend along the gradient found a distance rho uphill.

Foret, Kleiner, Mobahi, Neyshabur. *Sharpness-Aware Minimization for Efficiently Improving Generalization*.
arXiv:2010.01412, equations (2) and (3), Algorithm 1.
"""

from __future__ import annotations

from flatmin.perturb import STAY, Flow
from flatmin.streams import Stream
from flatmin.vectors import Scale


def sam(stream: Stream, *, rho: Scale) -> Flow:  # noqa: ARG001 (every flow is given a stream; SAM draws nothing)
    r"""Sharpness-aware gradient: :math:`\nabla f(w + \rho\, g / \|g\|_2)` with :math:`g = \nabla f(w)`.

    The norm is taken over all parameters together, and both gradients belong to the same mini-batch.

    Args:
        stream: Not used.
        rho: Length of the ascent step, in units of the weights. Cost: 2 gradients.

    Returns:
        The flow. It looks into its first gradient, so it is not linear.

    Example:
        >>> import functools, torch, flatmin as fm
        >>> fm.gradient(functools.partial(sam, rho=0.5), lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)}, seed=0)
        {'x': tensor(7.)}
    """
    return (yield rho * (yield STAY).unit())  # nothing the size of the model is held over the second evaluation
