"""Smoothing by weight noise, and no perturbation at all."""

from __future__ import annotations

from typing import Unpack

from torch.optim import Optimizer

from flatmin import flows
from flatmin.checks import nonnegative, whole
from flatmin.errors import ArgumentError
from flatmin.noise import Law, resolve_law
from flatmin.optim.patterns import Radius
from flatmin.optim.ranks import RankPolicy
from flatmin.optim.shell import Perturbed, ShellOptions
from flatmin.perturb import NoiseScale

_COUNT = "It is the number k of noise draws a step."


class Plain(Perturbed):
    r"""The base optimizer on the plain gradient, bit for bit: the baseline in the shells of the other methods.

    Args:
        base: The optimizer that makes the step.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.Plain(torch.optim.SGD(model.parameters(), lr=0.1))
    """

    def __init__(self, base: Optimizer, **options: Unpack[ShellOptions]) -> None:
        super().__init__(base, flows.sgd, radii={}, **options)


class NSO(Perturbed):
    r"""Noise stability optimization: the base optimizer on the two-point estimate of the smoothed loss's gradient.

    .. math:: \frac{1}{2k}\sum_{j=1}^{k}\left[\nabla f(w + u_j) + \nabla f(w - u_j)\right],\quad u_j\sim\sigma\mathcal P

    Zhang, Li, Ju, arXiv:2306.08553, Algorithm 1. It regularises the Hessian: to second order the smoothed loss is
    f + (sigma²/2) tr ∇²f. Cost: 2k gradients a step and one copy of the weights (with a closure, also one of the
    gradients). Linear in the gradients.

    Args:
        base: The optimizer that makes the step.
        sigma: Standard deviation of the noise on each weight: a number, a function of the step
            (:mod:`flatmin.noise.schedules`, :class:`AutoSigma`), or a mapping from patterns of parameter names, or
            classes of modules, to either: ``{"*.bias": 0.0, torch.nn.LayerNorm: 0.0, "*": 0.01}``. A parameter group
            may have its own, ``{"params": ..., "sigma": 0.0}``. 0 is the base optimizer, bit for bit, at the cost of
            one gradient.
        num_perturbations: k.
        noise: ``"gaussian"``, ``"laplace"``, ``"uniform"``, ``"rademacher"``, ``"binomial"``, or a law.
        noise_scale: Unit of sigma: ``"absolute"``, or the norm of each ``"parameter"`` or each ``"filter"`` (the slices
            of a parameter along its first dimension). A parameter group may have its own.
        clean_weight: Weight in [0, 1] of the unperturbed loss in the objective; 0 as in the paper.
        seed: Seed of the noise. Equal seeds give equal perturbations, whatever else draws random numbers.
        ranks: Whether distributed ranks draw ``"shared"`` noise, as one process would, or each its own
            (``"independent"``): then N ranks average over N k perturbations.
        **options: ``buffers``, ``common_randomness``, ``check_finite``, ``trace_window``, ``model``: see
            :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind, such as a class for ``base``.

    Example:
        >>> import torch, flatmin as fm
        >>> model, x, y = torch.nn.Linear(3, 2), torch.ones(8, 3), torch.zeros(8, dtype=torch.long)
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), sigma=0.01, seed=0)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = torch.nn.functional.cross_entropy(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = opt.step(closure)
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        sigma: Radius,
        num_perturbations: int = 1,
        noise: str | Law = "gaussian",
        noise_scale: NoiseScale = "absolute",
        clean_weight: float = 0.0,
        seed: int = 0,
        ranks: RankPolicy = "shared",
        **options: Unpack[ShellOptions],
    ) -> None:
        if ranks == "antithetic":
            raise ArgumentError(
                "ranks is 'antithetic', but NSO evaluates both points of a pair on every rank. Take 'independent' "
                "here, or WPSGD(..., ranks='antithetic'), which has one point on each of two ranks."
            )
        settings = {
            "num_perturbations": whole("num_perturbations", num_perturbations, minimum=1, hint=_COUNT),
            "noise": resolve_law(noise),
            "clean_weight": _share("clean_weight", clean_weight),
        }
        noisy = {"radii": {"sigma": sigma}, "noise_scale": noise_scale, "seed": seed, "ranks": ranks}
        super().__init__(base, flows.nso, settings=settings, **noisy, **options)


class WPSGD(Perturbed):
    r"""Weight-perturbed SGD: the base optimizer on :math:`\frac1k\sum_j \nabla f(w + u_j)`, without the mirror images.

    The one-sided baseline of Zhang, Li, Ju, arXiv:2306.08553, also known as randomized smoothing. Same objective as
    :class:`NSO`; its gradient has the additional variance sigma²‖∇²f‖²_F / k. Cost: k gradients a step and one copy of
    the weights. ``NSO(k)`` is matched in cost by 2k draws. Linear in the gradients.

    Args:
        base: The optimizer that makes the step.
        sigma: Standard deviation of the noise on each weight, as for :class:`NSO`.
        num_perturbations: k.
        noise: Name of a law, or a law.
        noise_scale: Unit of sigma, as for :class:`NSO`.
        seed: Seed of the noise.
        ranks: ``"shared"``, ``"independent"``, or ``"antithetic"``: ranks 2i and 2i + 1 take the two points of a pair.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.WPSGD(torch.optim.AdamW(model.parameters()), sigma=0.01, num_perturbations=2)
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        sigma: Radius,
        num_perturbations: int = 1,
        noise: str | Law = "gaussian",
        noise_scale: NoiseScale = "absolute",
        seed: int = 0,
        ranks: RankPolicy = "shared",
        **options: Unpack[ShellOptions],
    ) -> None:
        settings = {
            "num_perturbations": whole("num_perturbations", num_perturbations, minimum=1, hint=_COUNT),
            "noise": resolve_law(noise),
        }
        noisy = {"radii": {"sigma": sigma}, "noise_scale": noise_scale, "seed": seed, "ranks": ranks}
        super().__init__(base, flows.wpsgd, settings=settings, **noisy, **options)


def _share(name: str, value: float) -> float:
    share = nonnegative(name, value, hint="It is a share between 0 and 1.")
    if share > 1:
        raise ArgumentError(f"{name} is {value}, but it is a share and must lie between 0 and 1.")
    return share
