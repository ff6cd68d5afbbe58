r"""The sharpness-aware family: descend along the gradient found a short way uphill.

- Foret, Kleiner, Mobahi, Neyshabur. *Sharpness-Aware Minimization for Efficiently Improving Generalization*.
  arXiv:2010.01412, equations (2) and (3), Algorithm 1.
- Andriushchenko, Flammarion. *Towards Understanding Sharpness-Aware Minimization*. arXiv:2206.06232 (without the norm).
- Kwon, Kim, Park, Choi. *ASAM: Adaptive Sharpness-Aware Minimization*. arXiv:2102.11600, equation (9), Algorithm 1.
- Liu, Mai, Cheng, Chen, Hsieh, You. *Random Sharpness-Aware Minimization*. NeurIPS 2022, Algorithm 1.
- Möllenhoff, Khan. *SAM as an Optimal Relaxation of Bayes*. arXiv:2210.01620, Algorithm 1.
"""

from __future__ import annotations

from flatmin.noise import Gaussian, Law
from flatmin.perturb import STAY, WEIGHTS, Draw, Flow, Realized
from flatmin.streams import Stream
from flatmin.vectors import Scale, Vector


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


def usam(stream: Stream, *, rho: Scale) -> Flow:  # noqa: ARG001
    r"""Unnormalized sharpness-aware gradient: :math:`\nabla f(w + \rho\, \nabla f(w))`.

    Args:
        stream: Not used.
        rho: Size of the ascent step: a learning rate uphill. Cost: 2 gradients.

    Returns:
        The flow.

    Example:
        >>> import functools, torch, flatmin as fm                # on h x²/2 the gradient is multiplied by 1 + rho h
        >>> fm.gradient(functools.partial(usam, rho=0.5), lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)}, seed=0)
        {'x': tensor(12.)}
    """
    return (yield rho * (yield STAY))


def asam(stream: Stream, *, rho: Scale, eta: Scale = 0.01, adaptive: Scale = 1.0) -> Flow:  # noqa: ARG001
    r"""Adaptive sharpness-aware gradient: :math:`\nabla f(w + \rho\, T_w^2 g / \|T_w g\|_2)`.

    Elementwise: :math:`T_w = \operatorname{diag}(|w| + \eta)` for the tensors that are adapted, and the identity for
    the others. The radius is then measured in relative changes, so that rescaling layers against each other does not
    change it. The authors' code adapts the tensors with "weight" in their name.

    Args:
        stream: Not used.
        rho: Length of the ascent step, relative to the weights. Cost: 2 gradients.
        eta: η where T is |w| + η, and 1 where it is the identity.
        adaptive: 1 where T is |w| + η, and 0 where it is the identity.

    Returns:
        The flow.

    Example:
        >>> import functools, torch, flatmin as fm                # x = 3, eta = 0: the ascent step is rho |x|
        >>> flow = functools.partial(asam, rho=0.5, eta=0.0)
        >>> fm.gradient(flow, lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)}, seed=0)
        {'x': tensor(9.)}
    """
    t = adaptive * abs((yield WEIGHTS)) + eta
    return (yield rho * (t * (t * (yield STAY)).unit()))


def rsam(stream: Stream, *, rho: Scale, sigma: Scale, gradient_weight: float = 1.0, noise: Law = Gaussian()) -> Flow:  # noqa: B008
    r"""Random sharpness-aware gradient: ascend from a random point nearby, in the direction of noise and gradient.

    .. math:: \nabla f\Big(w + \rho\, \frac{\delta + \lambda g_\delta}{\|\delta + \lambda g_\delta\|_2}\Big),\quad
        g_\delta = \nabla f(w + \delta),\quad \delta \sim \mathcal N(0, \sigma^2 \|w_{\text{filter}}\|^2)

    Args:
        stream: Random stream of this step.
        rho: Length of the ascent step, in units of the weights. Cost: 2 gradients.
        sigma: Standard deviation of δ, relative to the norm of each filter.
        gradient_weight: λ.
        noise: Law of δ.

    Returns:
        The flow.

    Example:
        >>> import functools, torch, flatmin as fm                # with sigma = 0 it is SAM
        >>> flow = functools.partial(rsam, rho=0.5, sigma=0.0)
        >>> fm.gradient(flow, lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)}, seed=0)
        {'x': tensor(7.)}
    """
    delta = sigma * Draw(noise, stream, "filter")
    g = yield delta
    return (yield rho * ((yield Realized(delta)) + gradient_weight * g).unit())


def bsam(stream: Stream, *, rho: Scale, precision: Vector, num_examples: int) -> Flow:
    r"""Bayesian SAM: the gradient uphill, in the metric of a Gaussian posterior, of a gradient at a sample from it.

    .. math:: \nabla f(w + \rho\, g / s), \quad g = \nabla f(w + n / \sqrt{N s}), \quad n \sim \mathcal N(0, I)

    with the posterior N(w, 1 / (N s)). The ascent starts from w, not from the sample.

    Args:
        stream: Random stream of this step.
        rho: Size of the ascent step. Cost: 2 gradients.
        precision: s, of the shapes of the weights.
        num_examples: N, the number of training examples.

    Returns:
        The flow; beside the direction it gives ``scaled_gradient``, √s |g|, from which the precision is updated.

    Example:
        >>> import functools, torch, flatmin as fm                # with N → ∞ and s = 1 it is USAM
        >>> one = Vector({0: torch.tensor(1.0)})
        >>> flow = functools.partial(bsam, rho=0.5, precision=one, num_examples=10**12)
        >>> fm.gradient(flow, lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)}, seed=0)["x"].round(decimals=3)
        tensor(12.)
    """
    g = yield (yield Realized(Draw(Gaussian(), stream))) / (num_examples * precision).sqrt()
    return (yield rho * (g / precision)), {"scaled_gradient": precision.sqrt() * abs(g)}
