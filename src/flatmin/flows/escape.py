r"""Escaping sharp minima: gradient descent with perturbations that lower the Hessian's trace along the set of minima.

For g uniform on the unit sphere of dimension d, the expected gradient at a random point nearby is

.. math::
    \mathbb E\nabla f(x + \rho g) = \nabla f(x) + \frac{\rho^2}{2d} \nabla\operatorname{tr}\nabla^2 f(x) + O(\rho^3)

What points along the gradient is projected out, so that what remains moves along the set of minima.

Ahn, Jadbabaie, Sra. *How to Escape Sharp Minima with Random Perturbations*. arXiv:2305.15659, Definition 4 and
Algorithms 1 and 2, which ask for gradients over all data; on mini-batches that of the mini-batch takes their place.
"""

from __future__ import annotations

import math

from flatmin.noise import Gaussian
from flatmin.perturb import FULL_BATCH, STAY, Draw, Flow, Realized
from flatmin.streams import Stream
from flatmin.vectors import Scale, Vector, is_zero


def randomly_smoothed(stream: Stream, *, rho: Scale, threshold: float = math.inf, descent_scale: float = 1.0) -> Flow:
    r"""Randomly smoothed perturbation (Algorithm 1).

    .. math:: \nabla f(x) + \mathrm{Proj}^\perp_{\nabla f(x)}\nabla f(x + \rho g)

    g is uniform on the unit sphere over all parameters together. Where ‖∇f(x)‖ is above the threshold ε₀, and where rho
    is 0 (the final phase), the direction is η′/η ∇f(x): plain gradient descent of step η′.

    Args:
        stream: Random stream of this step.
        rho: Length of the perturbation. Cost: 2 gradients, or 1 above the threshold.
        threshold: ε₀. Infinity perturbs always and saves looking at the norm.
        descent_scale: η′/η.

    Returns:
        The flow.

    Example:
        >>> import functools, torch, flatmin as fm                # on a line everything is along the gradient
        >>> flow = functools.partial(randomly_smoothed, rho=0.5)
        >>> fm.gradient(flow, lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)}, seed=0)
        {'x': tensor(6.)}
    """
    gradient = yield STAY
    if is_zero(rho) or _is_far(gradient, threshold):
        return descent_scale * gradient
    g = (yield Realized(Draw(Gaussian(), stream))).unit()
    return gradient + (yield rho * g).orthogonal_to(gradient)


def sharpness_aware(
    stream: Stream,
    *,
    rho: Scale,
    threshold: float = math.inf,
    descent_scale: float = 1.0,
    exact: bool = False,
    restart: float = 1e-6,
) -> Flow:
    r"""Sharpness-aware perturbation (Algorithm 2).

    .. math:: \nabla f + \mathrm{Proj}^\perp_{\nabla f}\nabla f_i\Big(x + \rho\,\varsigma\,\frac{\nabla f_i(x)}
        {\|\nabla f_i(x)\|}\Big), \qquad \varsigma = \pm 1 \text{ with equal chances}

    with f the loss over all data and f_i that of one example. On mini-batches (``exact=False``) both are the loss of
    the mini-batch, which costs a gradient less. Above the threshold and at rho = 0 it is plain gradient descent.

    Args:
        stream: Random stream of this step.
        rho: Length of the perturbation. Cost: 2 gradients, exact 3, above the threshold 1.
        threshold: ε₀. Infinity perturbs always and saves looking at the norm.
        descent_scale: η′/η.
        exact: Ask for ∇f over all data, at an evaluation that says so, and for ∇f_i at the others.
        restart: Length of the random step that is taken first where ∇f_i(x) is zero (Remark 2; exact form only).

    Returns:
        The flow.

    Example:
        >>> import functools, torch, flatmin as fm
        >>> flow = functools.partial(sharpness_aware, rho=0.5, threshold=0.1, descent_scale=4.0)
        >>> fm.gradient(flow, lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)}, seed=0)       # far: 4 times 6
        {'x': tensor(24.)}
    """
    gradient = yield (FULL_BATCH if exact else STAY)
    if is_zero(rho) or _is_far(gradient, threshold):
        return descent_scale * gradient
    of_example = (yield STAY) if exact else gradient
    if exact and not of_example.norm():
        of_example = yield restart * (yield Realized(Draw(Gaussian(), stream))).unit()
    ascent = stream.sign() * of_example.unit()
    return gradient + (yield rho * ascent).orthogonal_to(gradient)


def _is_far(gradient: Vector, threshold: float) -> bool:
    return threshold < math.inf and bool(gradient.norm() > threshold)
