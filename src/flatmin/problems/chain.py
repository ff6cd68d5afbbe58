r"""The chain of piecewise quadratics, on which no method with noisy gradients gets below a certain gradient norm.

.. math:: f(W) = \frac1{2G}\langle W, e_0\rangle^2 + \sum_{i=0}^{T-1} h_i(\langle W, e_{i+1}\rangle), \qquad
    G = \max\Big\{C^{-1}, 2\sum_i \eta_i\Big\}

with :math:`h_i` a plateau of height :math:`C\alpha_i^2/4` up to :math:`\alpha_i`, that falls to zero at
:math:`2\alpha_i` by two arcs of curvature :math:`\mp C`. The oracle's error at step i is
:math:`\pm\sigma_g` along :math:`e_{i+1}`, and :math:`\alpha_i = \frac32 \eta_i\sigma_g`: a step's error moves its
coordinate by two thirds of the plateau, the perturbation, cut off at :math:`\frac12\eta_i\sigma_g`, by one third. So no
point looked at ever leaves a plateau, only the coordinate along :math:`e_0` is seen to move, and it shrinks slowly.

Zhang, Li, Ju. *Noise Stability Optimization for Finding Flat Minima*. arXiv:2306.08553, equations (13), (47) to (50);
after Drori and Shamir, *The complexity of finding stationary points with stochastic gradient descent*, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flatmin.checks import nonnegative, positive, whole
from flatmin.errors import ArgumentError
from flatmin.problems.base import Problem
from flatmin.streams import Stream


class PlateauChain(Problem):
    r"""The chain for given learning rates.

    Its dimension is T + 1, for T learning rates. Averages of k independent errors have the size :math:`\sigma_g/\sqrt
    k`; give that as ``gradient_noise`` (the construction needs the average bounded by it, as a fair sign is).

    Args:
        learning_rates: η₀ to η_{T-1}, each at most 1/C.
        smoothness: C, a Lipschitz constant of the gradient.
        gradient_noise: σ_g, the size of a step's gradient error.

    Raises:
        ArgumentError: A learning rate is above 1/C, or there is none.

    Example:
        >>> chain = PlateauChain([0.5, 0.5], smoothness=1.0, gradient_noise=1.0)
        >>> w = torch.tensor([2.0, 0.0, 1.5])                # 2²/4, a plateau of 0.75²/4, and the floor
        >>> chain.value(w), chain.gradient(w)
        (tensor(1.1406), tensor([1., 0., 0.]))
    """

    def __init__(
        self, learning_rates: Sequence[float], *, smoothness: float = 1.0, gradient_noise: float = 1.0
    ) -> None:
        self.smoothness: float = positive(
            "smoothness", smoothness, hint="It is C, a Lipschitz constant of the gradient."
        )
        self.gradient_noise: float = positive("gradient_noise", gradient_noise, hint="It is σ_g, the size of an error.")
        self.learning_rates: tuple[float, ...] = tuple(
            positive("learning_rates", lr, hint="Give η₀ to η_{T-1}.") for lr in learning_rates
        )
        if not self.learning_rates:
            raise ArgumentError("learning_rates is empty, but the chain has a link for each step. Give at least one.")
        if max(self.learning_rates) > 1 / self.smoothness:
            raise ArgumentError(
                f"a learning rate is {max(self.learning_rates):g}, above 1/smoothness = {1 / self.smoothness:g}, where "
                "the theorem ends. Choose smaller ones."
            )
        super().__init__((len(self.learning_rates) + 1,))

    @property
    def scale(self) -> float:
        """G of (48): one over the curvature along e₀."""
        return max(1 / self.smoothness, 2 * math.fsum(self.learning_rates))

    @cached_property
    def plateaus(self) -> Tensor:
        """α, half the width of each plateau; shape (T,), in double precision."""
        return 1.5 * self.gradient_noise * torch.tensor(self.learning_rates, dtype=torch.float64)

    @property
    def minima(self) -> Tensor:
        """The corners 2α and -2α of the region where f is zero, e₀ apart."""
        corner = torch.cat([self.plateaus.new_zeros(1), 2 * self.plateaus])
        return torch.stack([corner, -corner])

    def budget(self, distance: float = 1.0) -> float:
        """Return F(W₀) - min F for :meth:`start` at ``distance``, which the theorem wants to be at most its square."""
        return distance**2 / 2 + self.smoothness / 4 * float(self.plateaus.square().sum())

    def start(self, distance: float = 1.0, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return W₀ = D √G e₀, for D = ``distance``."""
        w = torch.zeros(self.dim, dtype=dtype)
        w[0] = distance * math.sqrt(self.scale)
        return w

    def error(self, step: int, *, seed: int = 0, num_points: int | None = None) -> Tensor:
        """Return the error of the gradient oracle at a step, ± σ_g along e_{step+1}, with fair signs (47).

        Args:
            step: From 0 to T - 1.
            seed: Of the signs.
            num_points: How many, each with a sign of its own; None for a single one without a leading axis.

        Raises:
            ArgumentError: The chain has no such step.
        """
        if whole("step", step, minimum=0, hint="Steps are numbered from 0.") >= len(self.learning_rates):
            raise ArgumentError(
                f"step is {step}, but the chain has a link for each of {len(self.learning_rates)} steps, numbered from "
                "0. Make a chain of more learning rates."
            )
        count = 1 if num_points is None else num_points
        source = Stream(seed, (step,)).generator(0, torch.device("cpu"))
        signs = 2 * torch.randint(2, (count,), generator=source).double() - 1
        errors = torch.zeros(count, self.dim, dtype=torch.float64)
        errors[:, step + 1] = self.gradient_noise * signs
        return errors if num_points is not None else errors[0]

    def noise(self, sigma: float) -> TruncatedGaussian:
        """Return the law of perturbations for ``sigma``: coordinate i is cut off at ½ η_{i-1} σ_g, e₀ nowhere."""
        sigma = nonnegative("sigma", sigma, hint="It is the size of the perturbation before it is cut off.")
        limits = self.plateaus / 3
        return TruncatedGaussian(torch.cat([limits.new_full((1,), math.inf), limits]) / sigma)

    def _heights(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return h, h′ and h″ of each link."""
        x, alpha, C = w[..., 1:], self.plateaus.to(w), self.smoothness
        size, zero = x.abs(), torch.zeros((), dtype=w.dtype, device=w.device)
        inner, outer = size - alpha, size - 2 * alpha
        on_plateau, falling, ending = inner <= 0, inner <= alpha / 2, outer <= 0

        def piecewise(plateau: Tensor, fall: Tensor, end: Tensor) -> Tensor:
            return torch.where(on_plateau, plateau, torch.where(falling, fall, torch.where(ending, end, zero)))

        top = C / 4 * alpha.square()
        h = piecewise(top.expand_as(x), top - C / 2 * inner.square(), C / 2 * outer.square())
        slope = piecewise(zero, -C * inner * x.sign(), C * outer * x.sign())
        return h, slope, piecewise(zero, zero - C, zero + C)

    def _value(self, w: Tensor) -> Tensor:
        return w[..., 0].square() / (2 * self.scale) + self._heights(w)[0].sum(-1)

    def _gradient(self, w: Tensor) -> Tensor:
        return torch.cat([w[..., :1] / self.scale, self._heights(w)[1]], -1)

    def _curvatures(self, w: Tensor) -> Tensor:
        return torch.cat([torch.full_like(w[..., :1], 1 / self.scale), self._heights(w)[2]], -1)

    def _hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        return self._curvatures(w) * v

    def _trace(self, w: Tensor) -> Tensor:
        return self._curvatures(w).sum(-1)


@dataclass(frozen=True, eq=False)
class TruncatedGaussian:
    """The normal law cut off at a limit for each coordinate; symmetric, and of a variance below one.

    Args:
        limits: Largest magnitude of each coordinate, of the shape of one point; infinity cuts nothing off.

    Raises:
        ArgumentError: A limit is below zero or NaN.

    Example:
        >>> law = TruncatedGaussian(torch.tensor([0.5, 2.0]))
        >>> bool((law.sample_(torch.empty(1000, 2), torch.Generator().manual_seed(0)).abs() <= law.limits).all())
        True
    """

    limits: Tensor

    def __post_init__(self) -> None:
        if not bool((self.limits >= 0).all()):
            raise ArgumentError("limits has an entry that is below zero or NaN, but they are magnitudes. Pass abs().")

    def sample_(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill ``out``, of any leading axes, with draws: the quantiles of uniform numbers within the limits."""
        limits = self.limits.to(out)
        reach = torch.erf(limits / math.sqrt(2))
        # The quantile of one is infinite; where a limit is, it takes the last number below one.
        reach = reach.clamp(max=1 - torch.finfo(out.dtype).eps)
        draws = torch.erfinv(out.uniform_(-1.0, 1.0, generator=generator).mul_(reach)).mul_(math.sqrt(2))
        return out.copy_(torch.minimum(torch.maximum(draws, -limits), limits))
