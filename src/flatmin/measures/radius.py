r"""Choosing sigma and rho: how far the weights can be moved before the loss rises by more than one is ready to pay.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, equations (2) to (4).
- Foret, Kleiner, Mobahi, Neyshabur. Sharpness-Aware Minimization. arXiv:2010.01412, equation (2).
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch

from flatmin.checks import choice, positive, whole
from flatmin.curvature.batch import check_depends
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, NonFiniteError
from flatmin.measures.rise import RadiusSearch, Rise, search
from flatmin.noise import resolve_law
from flatmin.perturb.flow import NOISE_SCALES, Draw
from flatmin.streams import Stream
from flatmin.vectors import Vector

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode
    from flatmin.noise import Law
    from flatmin.perturb.flow import NoiseScale

_STREAM = int.from_bytes(b"find")  # far from the steps of a training run, whose noise must not come back here
_SIGMAS = (-3.0, -1.0, 7)  # decades, in which networks of every size were trained
_RHOS = (-2.0, 0.0, 7)


def find_sigma(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    grid: Sequence[float] | Tensor | None = None,
    tolerance: float | None = None,
    fraction: float = 0.1,
    num_samples: int = 4,
    noise: str | Law = "gaussian",
    noise_scale: NoiseScale = "absolute",
    seed: int = 0,
    mode: Mode = "eval",
) -> RadiusSearch:
    r"""Propose the sigma of NSO or WP-SGD: the largest at which noise raises the loss by no more than a tolerance.

    .. math:: \max\{\sigma : \Delta(\sigma) \le \text{tolerance}\}, \qquad
        \Delta(\sigma) = \frac1n \sum_j \tfrac12\big[f(W + \sigma U_j) + f(W - \sigma U_j)\big] - f(W)
        = \frac{\sigma^2}{2} \operatorname{tr} \nabla^2 f(W) + O(\sigma^4)

    (equation (4) of the first paper), from forward passes alone. The rise is what training with this noise adds to its
    objective, so the tolerance says how much of that may be regularisation. The n draws are the same at every sigma,
    which makes the curve smooth. It is a proposal where to look, not an optimum: only validation data tell that.

    Where the loss is near 0, as on training data that a model fits perfectly, no share of it means anything: measure on
    held-out batches, or give a ``tolerance`` in units of the loss, such as 0.05 for cross-entropy.

    Args:
        model: The model as training will find it; its parameters that require gradients are moved.
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch.
        batches: A few batches, all of which are used: a list, a ``DataLoader``, or another re-iterable.
        grid: Sigmas to measure at, at least two, ascending. Default: three a decade from 0.001 to 0.1. If it does
            not enclose the tolerance, it goes on by its last (or first) ratio for at most 12 more, as the result says.
        tolerance: The rise that is allowed, in units of the loss. Default: ``fraction`` of the loss at W.
        fraction: The rise that is allowed, as a share of the loss at W, if ``tolerance`` is not given.
        num_samples: n, the number of pairs; at least 2. Cost: 2 n evaluations of the loss for each sigma, and one at W.
        noise: Law of U: a name such as ``"rademacher"``, or a law.
        noise_scale: Unit of sigma: ``"absolute"``, that of the weights; ``"filter"`` or ``"parameter"``, the norm of
            each filter or parameter.
        seed: Seed of the noise.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands.

    Returns:
        The proposal ``.value`` with the curve that it was read from; :func:`flatmin.landscape.plot_radius` draws it.

    Raises:
        ArgumentError: A value cannot work; the loss at W is not above 0 (or lost in rounding) and there is no
            ``tolerance``; or no parameter requires gradients.
        ArgumentTypeError: An argument is of the wrong kind.
        DataError: The data are empty, change between passes, or have an unknown form.
        NonFiniteError: The loss at W is NaN or infinite. At larger radii that is part of the curve.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 1, bias=False)                    # the mean of w_i² is 1 and its Hessian's trace 2
        >>> _ = nn.init.ones_(model.weight)
        >>> find_sigma(model, nn.functional.mse_loss, [(torch.eye(3), torch.zeros(3, 1))], noise="rademacher",
        ...            fraction=0.01).value                        # σ² tr H / 2 = 0.01
        0.1000...
    """
    whole("num_samples", num_samples, minimum=2, hint="It counts pairs of points; one has no standard error.")
    whole("seed", seed, minimum=0, hint="It is the seed of the noise.")
    unit = choice("noise_scale", noise_scale, NOISE_SCALES)
    law, stream = resolve_law(noise), Stream(seed).child(_STREAM)
    draws = [Draw(law, stream.child(j), relative_to=unit) for j in range(num_samples)]
    radii = _ascending(grid, _SIGMAS)
    risk = EmpiricalRisk(model, loss_fn, batches, mode=mode)
    with risk.observed(), closing(Rise(risk)) as rise:
        allowed = _allowed(rise.clean_loss, tolerance, fraction, risk)

        def rises_at(sigma: float) -> list[float]:
            return [(rise(sigma * draw) + rise(-(sigma * draw))) / 2 for draw in draws]

        return search("sigma", rise, rises_at, radii, allowed)


def find_rho(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    grid: Sequence[float] | Tensor | None = None,
    tolerance: float | None = None,
    fraction: float = 0.1,
    mode: Mode = "eval",
) -> RadiusSearch:
    r"""Propose the rho of SAM: the largest at which an ascent step raises the loss by no more than a tolerance.

    .. math:: \max\{\rho : \Delta(\rho) \le \text{tolerance}\}, \qquad
        \Delta(\rho) = f(W + \rho\, g / \|g\|) - f(W), \quad g = \nabla f(W)

    (equation (2) of the second paper): one gradient, then forward passes along it. The gradient of a mini-batch climbs
    the loss of that mini-batch faster than the gradient of all data climbs theirs, so give one batch of the size that
    training uses to see what a step of SAM sees.

    Args:
        model: The model as training will find it.
        loss_fn: As for :func:`find_sigma`.
        batches: A few batches, all of which are used.
        grid: Rhos to measure at, at least two, ascending. Default: three a decade from 0.01 to 1, and on as for
            :func:`find_sigma`.
        tolerance: The rise that is allowed, in units of the loss. Default: ``fraction`` of the loss at W.
        fraction: The rise that is allowed, as a share of the loss at W, if ``tolerance`` is not given.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands.

    Returns:
        The proposal ``.value`` with the curve that it was read from, all without error bars, since nothing is drawn.

    Raises:
        ArgumentError: As for :func:`find_sigma`; or the gradient is 0, which has no direction.
        ArgumentTypeError: An argument is of the wrong kind, or the loss depends on no trainable parameter.
        DataError: The data are empty, change between passes, or have an unknown form.
        NonFiniteError: The loss or its gradient at W is NaN or infinite.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(4, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> find_rho(model, lambda output, _: output.mean(), [(torch.ones(1, 4), torch.zeros(1))])       # 2 ρ = 0.4
        RadiusSearch(rho = 0.2: the loss of 4 rises by 0.4; 7 radii, 9 evaluations)
    """
    radii = _ascending(grid, _RHOS)
    risk = EmpiricalRisk(model, loss_fn, batches, mode=mode)
    with risk.observed(), closing(Rise(risk)) as rise:
        allowed = _allowed(rise.clean_loss, tolerance, fraction, risk)
        ascent = _ascent(risk)
        rise.num_evaluations += 1
        return search("rho", rise, lambda rho: [rise(rho * ascent)], radii, allowed)


def _ascending(grid: Sequence[float] | Tensor | None, decades: tuple[float, float, int]) -> list[float]:
    """Return the radii of ``grid``, checked, or the default ones."""
    if grid is None:
        return torch.logspace(*decades, dtype=torch.float64).tolist()
    radii = torch.as_tensor(grid, dtype=torch.float64).cpu()
    is_line = radii.dim() == 1 and len(radii) > 1 and bool(radii.isfinite().all())
    if not is_line or radii[0] <= 0 or (radii.diff() <= 0).any():
        raise ArgumentError(
            f"grid is {grid!r}, but at least two finite radii above 0 in ascending order are needed, such as "
            "torch.logspace(-3, -1, 7)."
        )
    return radii.tolist()


def _allowed(clean_loss: float, tolerance: float | None, fraction: float, risk: EmpiricalRisk) -> float:
    """Return the rise that is allowed, in units of the loss."""
    if tolerance is not None:
        return positive("tolerance", tolerance, hint="It is a rise of the loss, in units of the loss.")
    allowed = positive("fraction", fraction, hint="It is a share of the loss at the weights.") * clean_loss
    dtype = max((p.dtype for p in risk.parameters.values()), key=lambda dtype: torch.finfo(dtype).eps)
    if allowed <= torch.finfo(dtype).eps:
        raise ArgumentError(
            f"the loss at the weights is {clean_loss:.4g}, so a rise by {fraction:g} of it is none, or is lost in the "
            f"rounding of {dtype}. Likely cause: the model fits these data perfectly, or the loss may be negative. "
            "Measure on held-out batches, or pass tolerance, a rise in units of the loss, such as 0.05 for "
            "cross-entropy."
        )
    return allowed


def _ascent(risk: EmpiricalRisk) -> Vector:
    """Return the gradient of the loss over all data, of length one."""
    parameters, gradient, count = list(risk.parameters.values()), Vector({}), 0
    with torch.enable_grad():
        for part in risk.losses():
            check_depends(part.loss)
            parts = torch.autograd.grad(part.loss, parameters, allow_unused=True)
            count += part.size
            # A running mean, since a sum over examples may overflow in 16 bits.
            share, batch = part.size / count, Vector({i: g for i, g in enumerate(parts) if g is not None})
            gradient = (1 - share) * gradient + share * batch
    length = float(gradient.norm())
    if not math.isfinite(length):
        raise NonFiniteError(
            "the gradient holds NaN or infinity although the loss is finite: a derivative does not exist or overflows "
            "(sqrt, norm or log at 0?). Add a small eps there."
        )
    if length == 0:
        raise ArgumentError(
            "the gradient at the weights is 0, so no direction leads upwards and SAM would not move. Likely cause: the "
            "model fits these data perfectly. Take other batches, or noise: find_sigma."
        )
    return gradient.unit()
