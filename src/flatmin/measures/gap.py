r"""The perturbation gap: how much the loss rises, on average, when noise is added to the weights.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, equations (1) to (4).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flatmin.checks import positive, whole
from flatmin.curvature.results import Estimate, TraceEstimate, plus_minus
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from flatmin.noise import resolve_law
from flatmin.perturb.displace import Displacer
from flatmin.perturb.flow import Draw
from flatmin.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn
    from torch.distributed import ProcessGroup

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.layout import Layout
    from flatmin.curvature.observe import Mode
    from flatmin.noise import Law

_SQUARED = (1e-150, 1e150)
_STREAM = int.from_bytes(b"gap")  # far from the steps of a training run, whose noise must not come back here


@dataclass(frozen=True, kw_only=True, repr=False)
class GapEstimate(Estimate):
    """A perturbation gap F(W) - f(W), estimated.

    Attributes:
        value: The gap, in units of the loss.
        stderr: Its standard error.
        samples: One two-point estimate for each draw, shape (``num_samples``,).
        sigma: Standard deviation of the noise, in units of the weights.
        num_samples: Pairs of points; twice as many evaluations of the loss on all data, and one at W.
        clean_loss: f(W).
        noise: The law of the noise.

    Example:
        >>> GapEstimate(value=0.00054, stderr=2e-5, sigma=0.01, num_samples=100, clean_loss=0.25, noise="gaussian")
        GapEstimate(0.000540 ± 0.000020, sigma=0.01, 100 pairs)
    """

    sigma: float
    num_samples: int
    clean_loss: float
    noise: str | Law

    def __repr__(self) -> str:
        """Show value, error, noise and cost in one line."""
        return f"GapEstimate({plus_minus(self.value, self.stderr)}, sigma={self.sigma:g}, {self.num_samples} pairs)"

    @property
    def smoothed_loss(self) -> float:
        """F(W), the mean loss under noise."""
        return self.clean_loss + self.value

    @property
    def trace(self) -> TraceEstimate:
        """The smoothed trace 2 (F(W) - f(W)) / σ², which noise training of this σ acts on, with its standard error.

        On quadratics it is the trace of the Hessian, on smooth networks nearly so for small σ. At kinks (ReLU) it sees
        curvature that second derivatives do not: mostly upwards, so that it can be many times larger.
        """
        scale = 2 / self.sigma**2
        samples = None if self.samples is None else scale * self.samples
        value, stderr = scale * self.value, scale * self.stderr
        return TraceEstimate(value=value, stderr=stderr, num_matvecs=self.num_samples, samples=samples)


def perturbation_gap(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    sigma: float,
    num_samples: int = 100,
    noise: str | Law = "gaussian",
    seed: int = 0,
    mode: Mode = "eval",
    parameters: str | Sequence[str] | None = None,
    group: ProcessGroup | None = None,
) -> GapEstimate:
    r"""Estimate F(W) - f(W) = E f(W + U) - f(W) by pairs of points, from forward passes alone.

    .. math:: F(W) - f(W) \approx \frac1n \sum_j \Big[\tfrac12\big(f(W + U_j) + f(W - U_j)\big) - f(W)\Big]
        = \frac{\sigma^2}{2} \operatorname{tr} \nabla^2 f(W) + O(\sigma^4)

    (equation (4) of the paper). A pair cancels the slope: on a quadratic one pair of Gaussian draws has variance
    :math:`\tfrac12 \sigma^4 \|H\|_F^2`, where a single point would add :math:`\sigma^2 \|\nabla f\|^2`. Weights are
    restored bit for bit, by exceptions too; nothing else is changed either.

    In float32 a loss has about seven digits: where σ² tr H / 2 is below 1e-6 of the loss, take a larger σ or a float64
    model.

    Args:
        model: The model; its parameters that require gradients are moved.
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch. Batches are then averaged by their number of examples, in float64.
        batches: A ``DataLoader``, a list, or another re-iterable of (inputs, targets) or of mappings.
        sigma: Standard deviation of each coordinate of U, in units of the weights.
        num_samples: n, the number of pairs; at least 2. Cost: 2 n + 1 evaluations of the loss on all data.
        noise: Law of U: a name such as ``"rademacher"``, or a law.
        seed: Seed of the noise.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands, dropout with the same masks at
            all points.
        parameters: Pattern or patterns of the names of those that are moved, in the manner of a shell, such as
            ``"*.weight"``; the others stay, and ``.trace`` is that of the block. Each gets the same noise as when all
            are moved. Default: all.
        group: Ranks that hold batches of their own, over which the loss is averaged: ``torch.distributed.group.WORLD``.
            Sharded models (FSDP2) are averaged over their ranks without it.

    Returns:
        The gap with its standard error; ``.trace`` is the trace that it amounts to.

    Raises:
        ArgumentError: ``sigma`` is not above 0, ``num_samples`` is below 2, the law is unknown, a pattern fits no
            parameter, or no parameter requires gradients.
        ArgumentTypeError: An argument is of the wrong kind.
        DataError: The data are empty, change between passes, or have an unknown form.
        NonFiniteError: A loss is NaN or infinite.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(3, 1, bias=False)
        >>> gap = perturbation_gap(model, nn.functional.mse_loss, [(torch.eye(3), torch.zeros(3, 1))], sigma=0.1,
        ...                        noise="rademacher")
        >>> round(gap.value, 6), round(gap.trace.value, 4)         # tr H = 2/3 · 3
        (0.01, 2.0)
    """
    sigma = checked(sigma, seed, num_samples)
    risk = EmpiricalRisk(model, loss_fn, batches, mode=mode, sharded=True, group=group)
    with risk.observed(), closing(Pairs(risk, noise, seed, matching(risk.layout, parameters))) as pairs:
        return pairs.estimate(sigma, num_samples)


def matching(layout: Layout, parameters: str | Sequence[str] | None) -> list[str] | None:
    """Return the names that fit a pattern or patterns; None, which stands for all, for None."""
    if parameters is None:
        return None
    patterns: Any = [parameters] if isinstance(parameters, str) else parameters
    if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ArgumentTypeError(f"parameters is {parameters!r}, but patterns of names are needed, such as '*.weight'.")
    if not patterns:
        raise ArgumentError(
            "parameters is empty, so nothing would be moved. Name patterns, such as '*.weight', or leave it out to "
            "move all."
        )
    return layout.matching(*patterns)


def checked(sigma: float, seed: int, num_samples: int = 2) -> float:
    """Return ``sigma`` as a float, the arguments of a gap being what they must be."""
    whole("num_samples", num_samples, minimum=2, hint="It counts pairs of points; one has no standard error.")
    whole("seed", seed, minimum=0, hint="It is the seed of the noise.")
    sigma = positive("sigma", sigma, hint="It is the standard deviation of the noise, in units of the weights.")
    if not _SQUARED[0] < sigma < _SQUARED[1]:
        raise ArgumentError(f"sigma is {sigma}, whose square is beyond all numbers. Take one such as 0.01.")
    return sigma


class Pairs:
    """The rises of the loss at pairs of points W + U and W - U; closing it puts the weights back.

    Args:
        risk: The loss, which is being observed.
        noise: Law of U.
        seed: Seed of the draws.
        moved: Names of the parameters that are displaced. Default: all.
        clean_loss: f(W), where it is known.

    Attributes:
        clean_loss: f(W).
        num_evaluations: Evaluations of the loss on all data so far.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        noise: str | Law,
        seed: int,
        moved: Collection[str] | None = None,
        clean_loss: float | None = None,
    ) -> None:
        self._noise, self._law, self._stream, self._risk = noise, resolve_law(noise), Stream(seed).child(_STREAM), risk
        risk.check_weights()
        self.num_evaluations: int = int(clean_loss is None)
        self.clean_loss: float = risk.mean() if clean_loss is None else clean_loss
        # Positions count all parameters, so that one's noise does not depend on which others are moved.
        named = enumerate(risk.parameters.items())
        chosen = {i: parameter for i, (name, parameter) in named if moved is None or name in moved}
        self._displacer = Displacer(chosen, risk.model.modules(), unseen=True)

    def rise(self, number: int, sigma: float) -> float:
        """Return the mean loss at the two points less f(W), U being the draw of this number times ``sigma``.

        Raises:
            NonFiniteError: A loss is NaN or infinite.
        """
        draw = sigma * Draw(self._law, self._stream.child(number))
        try:
            return (self._at(draw) + self._at(-draw)) / 2 - self.clean_loss
        except NonFiniteError as error:
            raise NonFiniteError(
                f"the loss is not finite at weights displaced by noise of sigma={sigma:g}, though it is "
                f"{self.clean_loss:.4g} at the weights themselves. Likely cause: sigma is too large for these weights; "
                "take a smaller one."
            ) from error

    def estimate(self, sigma: float, num_samples: int) -> GapEstimate:
        """Return the gap from the first ``num_samples`` draws.

        Raises:
            NonFiniteError: A loss is NaN or infinite.
        """
        samples = torch.tensor([self.rise(j, sigma) for j in range(num_samples)], dtype=torch.float64)
        return GapEstimate(
            value=float(samples.mean()),
            stderr=float(samples.std() / math.sqrt(num_samples)),
            samples=samples,
            sigma=sigma,
            num_samples=num_samples,
            clean_loss=self.clean_loss,
            noise=self._noise,
        )

    def _at(self, draw: Draw) -> float:
        self._displacer.displace(draw)
        self.num_evaluations += 1
        return self._risk.mean()

    def close(self) -> None:
        """Put the weights back."""
        self._displacer.release()
