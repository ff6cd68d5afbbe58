r"""The trace that weight noise acts on, from forward passes alone.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, equations (1) to (4).
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flatmin.checks import positive, whole
from flatmin.curvature.results import Estimate, TraceEstimate, plus_minus
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.curvature.trace.sampling import Drawn, Goal, Samples
from flatmin.measures.gap import Pairs, checked, matching

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode
    from flatmin.noise import Law

_FIXED_BUDGET, _TOLERANCE_BUDGET = 100, 10_000
_COMPARED = 16  # pairs that are evaluated at smaller sigmas too
_SMOOTH = 0.75  # half-way between the exponents 2 and -1/2
_ROUNDED = 2.0  # times the rounding of one loss
_NEGLIGIBLE, _TOO_FAR = 1e-3, 0.3  # changes from sigma to its half that decide without the exponent


@dataclass(frozen=True, kw_only=True, repr=False)
class PerturbationTrace(TraceEstimate):
    """The smoothed trace 2 (F(W) - f(W)) / σ², estimated, and what it becomes for smaller noise.

    Attributes:
        value: The smoothed trace at ``sigma``, the mean of ``samples``.
        stderr: Its standard error.
        sigma: Standard deviation of the noise, in units of the weights.
        clean_loss: f(W).
        at_half: The smoothed trace at half of ``sigma``.
        limit: What it becomes for σ to 0 where the loss is smooth: the Hessian's trace. Extrapolated from ``sigma`` and
            its half, so of use only where these are near each other.
        exponent: By which power of σ a draw's samples come to agree: 2 where the loss is smooth, -1/2 at kinks, -2
            where rounding rules. NaN where they agree exactly.
        kinks: Whether the loss has kinks within the reach of the noise, so that second derivatives miss curvature that
            noise meets. None where that cannot be told: rounding hides it (take a larger σ, or float64), or the noise
            reaches so far that the trace changes by a third from σ to its half (take a smaller σ).
    """

    sigma: float
    clean_loss: float
    at_half: Estimate
    limit: Estimate
    exponent: float
    kinks: bool | None

    def __repr__(self) -> str:
        """Show the value, its limit and its cost in one line."""
        shape = {True: "kinks", False: "smooth", None: "kinks or not is undecided"}[self.kinks]
        half, limit = (plus_minus(e.value, e.stderr) for e in (self.at_half, self.limit))
        return (
            f"PerturbationTrace({plus_minus(self.value, self.stderr)} at sigma={self.sigma:g}, {half} at half of it, "
            f"{limit} extrapolated to 0; {shape}; {self.num_matvecs} pairs = {self.gradients:.3g} gradients"
            + ("" if self.converged else ", not converged")
            + ")"
        )


def perturbation_trace(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    sigma: float,
    num_samples: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    noise: str | Law = "gaussian",
    seed: int = 0,
    mode: Mode = "eval",
    parameters: str | Sequence[str] | None = None,
    group: ProcessGroup | None = None,
) -> PerturbationTrace:
    r"""Estimate the smoothed trace, which noise training of this σ acts on, without any derivative.

    .. math:: \frac{2}{\sigma^2}\,\mathbb E\Big[\tfrac12\big(f(W+U) + f(W-U)\big) - f(W)\Big]
        = \operatorname{tr} \nabla^2 f(W) + O(\sigma^2)

    by the pairs of :func:`perturbation_gap`, and the same draws for the same seed. On smooth networks and for small σ
    it is the trace of the Hessian. At kinks (ReLU, max-pooling) it differs for any σ, since second derivatives are
    those of the pieces: it is larger where kinks turn the loss upwards, as they mostly do, and smaller where they turn
    it downwards. Both are right, about different things, and this is the one that the noise meets.

    The first 16 draws are evaluated at σ/2 and σ/4 too. Each draw's sample q(σ) = 2 (rise) / σ² tends to U'HU/σ² where
    the loss is smooth, so that q(σ) - q(σ/2) is four times q(σ/2) - q(σ/4). At kinks, of which a smaller displacement
    meets fewer, these differences do not shrink but grow as σ^(-1/2); by rounding, as σ^(-2).

    Args:
        model: The model; its parameters that require gradients are moved.
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings.
        batches: A ``DataLoader``, a list, or another re-iterable of (inputs, targets) or of mappings.
        sigma: Standard deviation of each coordinate of U, in units of the weights: that of the training.
        num_samples: The number of pairs; at least 2. With a tolerance, the most that may be spent. Default: 100, or
            10,000 with a tolerance. In gradients, a pair costs 2/3, and the comparison 64/3.
        rtol: Standard error to reach, relative to the trace.
        atol: Standard error to reach, in units of the trace.
        noise: Law of U: a name such as ``"rademacher"``, which has the least variance, or a law.
        seed: Seed of the noise.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands, dropout with the same masks at
            all points.
        parameters: Pattern or patterns of the names of those that are moved, as in :func:`perturbation_gap`; the trace
            is then that of the block. Default: all.
        group: Ranks that hold batches of their own, over which the loss is averaged: ``torch.distributed.group.WORLD``.
            Sharded models (FSDP2) are averaged over their ranks without it.

    Returns:
        The smoothed trace with its standard error, at σ and σ/2, its limit, and whether there are kinks.

    Raises:
        ArgumentError: ``sigma`` is not above 0, ``num_samples`` is below 2, a tolerance is not above 0, the law is
            unknown, a pattern fits no parameter, or no parameter requires gradients.
        ArgumentTypeError: An argument is of the wrong kind.
        DataError: The data are empty, change between passes, or have an unknown form.
        NonFiniteError: A loss is NaN or infinite.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 1, bias=False).double()
        >>> data = [(torch.eye(3).double(), torch.zeros(3, 1).double())]
        >>> perturbation_trace(model, nn.functional.mse_loss, data, sigma=0.1, num_samples=10, noise="rademacher").kinks
        False
    """
    sigma = checked(sigma, seed)
    goal = _goal(num_samples, rtol, atol)
    risk = EmpiricalRisk(model, loss_fn, batches, mode=mode, sharded=True, group=group)
    with risk.observed(), closing(Pairs(risk, noise, seed, matching(risk.layout, parameters))) as pairs:
        samples = Samples(lambda start, stop: Drawn(_traces(pairs, range(start, stop), sigma)), _none, guarded=False)
        converged = samples.run(goal, most=goal.budget, width=1)
        eps = max(torch.finfo(parameter.dtype).eps for parameter in risk.parameters.values())
        comparison = _compared(pairs, samples.total[:_COMPARED], sigma, eps)
    drop, drift = comparison.drop, float(comparison.drop.mean())
    error = float(drop.std()) / math.sqrt(len(drop))
    return PerturbationTrace(
        value=samples.value,
        stderr=samples.stderr,
        samples=samples.total,
        num_matvecs=len(samples.forms),
        gradients=pairs.num_evaluations / 3,
        seed=seed,
        route="second differences of losses, forward passes only",
        method="smoothed",
        converged=converged,
        sigma=sigma,
        clean_loss=pairs.clean_loss,
        at_half=Estimate(value=samples.value - drift, stderr=math.hypot(samples.stderr, error)),
        limit=Estimate(value=samples.value - 4 / 3 * drift, stderr=math.hypot(samples.stderr, 4 / 3 * error)),
        exponent=comparison.exponent,
        kinks=comparison.kinks,
    )


def _goal(num_samples: int | None, rtol: float | None, atol: float | None) -> Goal:
    hint = "It is the standard error to reach; leave it out to spend num_samples."
    tolerances = [0.0 if t is None else positive(n, t, hint=hint) for n, t in (("rtol", rtol), ("atol", atol))]
    default = _TOLERANCE_BUDGET if any(tolerances) else _FIXED_BUDGET
    asked = default if num_samples is None else num_samples
    return Goal(whole("num_samples", asked, minimum=2, hint="It counts pairs; one has no standard error."), *tolerances)


def _none(_energy: float, _form: float) -> float:
    return 0.0


def _traces(pairs: Pairs, numbers: Iterable[int], sigma: float) -> Tensor:
    return torch.tensor([2 / sigma**2 * pairs.rise(j, sigma) for j in numbers], dtype=torch.float64)


class _Comparison(NamedTuple):
    drop: Tensor
    exponent: float
    kinks: bool | None


def _compared(pairs: Pairs, at_sigma: Tensor, sigma: float, eps: float) -> _Comparison:
    """Compare samples at sigma with those of the same draws at a half and a quarter of it."""
    half, quarter = (_traces(pairs, range(len(at_sigma)), sigma / part) for part in (2, 4))
    drop, next_drop = at_sigma - half, half - quarter
    far, near, size = (float(d.square().mean().sqrt()) for d in (drop, next_drop, half))
    rounding = 2 / (sigma / 4) ** 2 * eps * abs(pairs.clean_loss)
    exponent = math.log2(far / near) if far > 0 and near > 0 else math.nan
    if size < rounding:
        return _Comparison(drop, exponent, kinks=None)
    if far <= _NEGLIGIBLE * size:
        return _Comparison(drop, exponent, kinks=False)
    if exponent < _SMOOTH:
        return _Comparison(drop, exponent, kinks=True if near > _ROUNDED * rounding else None)
    is_far = abs(float(drop.mean())) > _TOO_FAR * abs(float(half.mean()))
    return _Comparison(drop, exponent, kinks=None if is_far else False)
