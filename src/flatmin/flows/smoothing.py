r"""Randomized smoothing of the loss: weight-perturbed SGD and noise stability optimization.

Both estimate the gradient of :math:`F(w) = \mathbb E_u[f(w + u)]`, :math:`u \sim \mathcal P` with mean zero and
variance sigma², whose second-order expansion is
:math:`f(w) + \frac{\sigma^2}{2}\operatorname{tr}\nabla^2 f(w)`. NSO evaluates at :math:`+u` and :math:`-u`, which
cancels the first-order term and the variance it brings.

Zhang, Li, Ju. *Noise Stability Optimization for Finding Flat Minima: A Hessian-based Regularization Approach*.
arXiv:2306.08553, Algorithm 1 and equations (2) to (4).
"""

from __future__ import annotations

from flatmin.noise import Gaussian, Law
from flatmin.perturb import STAY, Draw, Flow
from flatmin.streams import Stream
from flatmin.vectors import PerParameter, Scale

NoiseUnit = str | PerParameter[str]


def sgd(stream: Stream) -> Flow:  # noqa: ARG001 (every flow is given a stream)
    r"""The gradient itself, :math:`\nabla f(w)`: the identity among flows.

    Args:
        stream: Not used.

    Returns:
        The flow.

    Example:
        >>> import torch, flatmin as fm
        >>> fm.gradient(sgd, lambda w: w["x"] ** 2, {"x": torch.tensor(3.0)})
        {'x': tensor(6.)}
    """
    return (yield STAY)


def nso(
    stream: Stream,
    *,
    sigma: Scale,
    num_perturbations: int = 1,
    noise: Law = Gaussian(),  # noqa: B008 (frozen)
    noise_scale: NoiseUnit = "absolute",
    clean_weight: float = 0.0,
) -> Flow:
    r"""Two-point noise injection: :math:`\frac{1}{2k}\sum_{j=1}^k [\nabla f(w + u_j) + \nabla f(w - u_j)]`.

    Args:
        stream: Random stream of this step; pair j draws from its child j.
        sigma: Standard deviation of each coordinate of u, in units of the weights.
        num_perturbations: k of Algorithm 1. Cost: 2k gradients.
        noise: Law of u; centred, symmetric, unit variance.
        noise_scale: Unit of sigma: ``"absolute"``, or the norm of each ``"parameter"`` or ``"filter"``.
        clean_weight: λ in [0, 1] of the direction λ ∇f(w) + (1 - λ) (the above): the mixed objective of the authors'
            code, not in the paper. One gradient more where 0 < λ < 1, and only ∇f(w) where λ = 1.

    Returns:
        The flow; its direction is an unbiased estimate of the gradient of λ f + (1 - λ) F.

    Example:
        >>> import functools, torch, flatmin as fm
        >>> flow = functools.partial(nso, sigma=0.1, noise=fm.Rademacher())
        >>> cubic = lambda w: (w["x"] ** 3).sum()                       # F(x) = x³ + 3 sigma² x
        >>> fm.gradient(flow, cubic, {"x": torch.tensor([2.0])}, seed=0)    # F'(2) = 12 + 3 sigma²
        {'x': tensor([12.0300])}
    """
    clean, total = (yield STAY), 0
    for j in range(num_perturbations):
        u = sigma * Draw(noise, stream.child(j), noise_scale)
        total += yield u
        total += yield -u
    return clean_weight * clean + (1 - clean_weight) * (total / (2 * num_perturbations))


def wpsgd(
    stream: Stream,
    *,
    sigma: Scale,
    num_perturbations: int = 1,
    noise: Law = Gaussian(),  # noqa: B008 (frozen)
    noise_scale: NoiseUnit = "absolute",
) -> Flow:
    r"""Weight-perturbed SGD (randomized smoothing): :math:`\frac1k\sum_{j=1}^k \nabla f(w + u_j)`.

    Args:
        stream: Random stream of this step; draw j comes from its child j.
        sigma: Standard deviation of each coordinate of u, in units of the weights.
        num_perturbations: k. Cost: k gradients; NSO(k) is matched in cost by 2k of these.
        noise: Law of u; centred, unit variance.
        noise_scale: Unit of sigma, see :func:`nso`.

    Returns:
        The flow; its direction is an unbiased estimate of the gradient of F.

    Example:
        >>> import functools, torch, flatmin as fm
        >>> flow = functools.partial(wpsgd, sigma=0.1, num_perturbations=2, noise=fm.Rademacher())
        >>> fm.gradient(flow, lambda w: 5 * w["x"], {"x": torch.tensor(3.0)}, seed=0)
        {'x': tensor(5.)}
    """
    total = 0
    for j in range(num_perturbations):
        total += yield sigma * Draw(noise, stream.child(j), noise_scale)
    return total / num_perturbations
