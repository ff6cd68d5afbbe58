"""The two algorithms that escape sharp minima, around any base optimizer."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

from torch.optim import Optimizer

from flatmin import flows
from flatmin.checks import positive
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.optim.patterns import Radius
from flatmin.optim.shell import Perturbed, ShellOptions


class RandomlySmoothed(Perturbed):
    r"""Randomly smoothed perturbation: :math:`\nabla f + \mathrm{Proj}^\perp_{\nabla f}\nabla f(w + \rho g)`.

    g is uniform on the unit sphere over all parameters together. Ahn, Jadbabaie, Sra, arXiv:2305.15659, Algorithm 1:
    their exact form where the closure computes the loss over all data, the mini-batch form where it does not. The
    learning rate of the base is η near the minima, and ``descent_scale`` times it away from them. The theory takes
    η = O(δε), η′ = 1/β, ρ = O(δ√ε) and ε₀ = O(δ^1.5 ε). Cost: 2 gradients a step, 1 above the threshold; one copy of
    the weights and two tensors the size of the model.

    Args:
        base: The optimizer that makes the step; plain SGD in the paper.
        rho: Length of the perturbation: a number, a function of the step, or a mapping from patterns of parameter names
            to either. Where it becomes 0 (:func:`flatmin.schedules.cutoff`) the final phase of gradient descent begins.
        threshold: ε₀: a step with a longer gradient is one of gradient descent. Infinity, for mini-batches, perturbs
            always. A finite one has the host wait for the norm in every step.
        descent_scale: η′/η, the length of steps of gradient descent relative to the others.
        seed: Seed of the noise.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> rho = fm.schedules.cutoff(0.1, 10_000)                     # then gradient descent to the end
        >>> opt = fm.RandomlySmoothed(torch.optim.SGD(model.parameters(), lr=0.01), rho=rho, threshold=0.2)
    """

    _sees_loss_scale: ClassVar[bool] = True

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: Radius,
        threshold: float = math.inf,
        descent_scale: float = 1.0,
        seed: int = 0,
        **options: Unpack[ShellOptions],
    ) -> None:
        settings = {"threshold": _threshold(threshold), "descent_scale": _scale(descent_scale)}
        radii = {"rho": rho}
        super().__init__(base, flows.randomly_smoothed, radii=radii, settings=settings, seed=seed, **options)


class SharpnessAware(Perturbed):
    r"""Sharpness-aware perturbation: ascent along the gradient of one example, with a random sign.

    .. math:: \nabla f + \mathrm{Proj}^\perp_{\nabla f}
        \nabla f_i\Big(w + \rho\,\varsigma\,\frac{\nabla f_i(w)}{\|\nabla f_i(w)\|}\Big),\qquad \varsigma=\pm1

    Ahn, Jadbabaie, Sra, arXiv:2305.15659, Algorithm 2. With ``exact=True`` f is the loss over all data: at the
    evaluations whose ``probe.full_batch`` is true compute that, at the others the loss of one example (a closure finds
    its probe at ``opt.probe``). Otherwise both are the loss of the mini-batch. The theory takes ν = min(d, ε^(-1/3)),
    η = O(νδε), η′ = 1/β, ρ = O(νδ√ε) and ε₀ = O(ν^1.5 δ^1.5 ε). Cost: 2 gradients a step (exact: 3, one of them over
    all data), 1 above the threshold.

    Args:
        base: The optimizer that makes the step; plain SGD in the paper.
        rho: As for :class:`RandomlySmoothed`.
        threshold: As for :class:`RandomlySmoothed`.
        descent_scale: As for :class:`RandomlySmoothed`.
        exact: Tell the gradient over all data from that of one example.
        restart: Length of the random step that is taken first where the gradient of the example is zero; exact only.
        seed: Seed of the signs.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model, x, y = torch.nn.Linear(3, 1), torch.eye(3), torch.ones(3, 1)
        >>> opt = fm.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.01), rho=0.1, exact=True)
        >>> for probe in opt.probes():
        ...     rows = slice(None) if probe.full_batch else slice(1)
        ...     with probe:
        ...         (model(x[rows]) - y[rows]).square().mean().backward()
        >>> opt.step()
    """

    _sees_loss_scale: ClassVar[bool] = True

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: Radius,
        threshold: float = math.inf,
        descent_scale: float = 1.0,
        exact: bool = False,
        restart: float = 1e-6,
        seed: int = 0,
        **options: Unpack[ShellOptions],
    ) -> None:
        settings = {
            "threshold": _threshold(threshold),
            "descent_scale": _scale(descent_scale),
            "exact": bool(exact),
            "restart": positive("restart", restart, hint="It is a length in the units of the weights; the paper: ε³."),
        }
        super().__init__(base, flows.sharpness_aware, radii={"rho": rho}, settings=settings, seed=seed, **options)


def _threshold(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"threshold is {value!r}, which is no number. It is ε₀, a length of the gradient.")
    if not value > 0:
        raise ArgumentError(
            f"threshold is {value!r}, but it must be above 0: no gradient is shorter, so nothing would be perturbed. "
            "Infinity perturbs always."
        )
    return float(value)


def _scale(value: float) -> float:
    return positive("descent_scale", value, hint="It is η′/η; 1 takes the base's learning rate everywhere.")
