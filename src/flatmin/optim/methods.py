"""The methods by name: each is a flow in the optimizer shell, and nothing more."""

from __future__ import annotations

from typing import Unpack

from torch.optim import Optimizer

from flatmin import flows
from flatmin.checks import nonnegative, whole
from flatmin.errors import ArgumentError
from flatmin.noise import Law, Schedule, resolve_law
from flatmin.optim.shell import Perturbed, ShellOptions

_COUNT = "It is the number k of noise draws a step."


class NSO(Perturbed):
    r"""Noise stability optimization: the base optimizer on the two-point estimate of the smoothed loss's gradient.

    .. math:: \frac{1}{2k}\sum_{j=1}^{k}\left[\nabla f(w + u_j) + \nabla f(w - u_j)\right],\quad u_j\sim\sigma\mathcal P

    Zhang, Li, Ju, arXiv:2306.08553, Algorithm 1. It regularises the Hessian: to second order the smoothed loss is
    f + (sigma²/2) tr ∇²f. Cost: 2k gradients a step and one copy of the weights (with a closure, also one of the
    gradients). Linear in the gradients.

    Args:
        base: The optimizer that makes the step.
        sigma: Standard deviation of the noise on each weight: a number, or a function of the step
            (:mod:`flatmin.noise.schedules`). A parameter group may have its own, ``{"params": ..., "sigma": 0.0}``.
            0 is the base optimizer, bit for bit, at the cost of one gradient.
        num_perturbations: k.
        noise: ``"gaussian"``, ``"laplace"``, ``"uniform"``, ``"rademacher"``, ``"binomial"``, or a law.
        clean_weight: Weight in [0, 1] of the unperturbed loss in the objective; 0 as in the paper.
        seed: Seed of the noise. Equal seeds give equal perturbations, whatever else draws random numbers.
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
        sigma: float | Schedule,
        num_perturbations: int = 1,
        noise: str | Law = "gaussian",
        clean_weight: float = 0.0,
        seed: int = 0,
        **options: Unpack[ShellOptions],
    ) -> None:
        settings = {
            "num_perturbations": whole("num_perturbations", num_perturbations, minimum=1, hint=_COUNT),
            "noise": resolve_law(noise),
            "clean_weight": _share("clean_weight", clean_weight),
        }
        super().__init__(base, flows.nso, radii={"sigma": sigma}, settings=settings, seed=seed, **options)


class WPSGD(Perturbed):
    r"""Weight-perturbed SGD: the base optimizer on :math:`\frac1k\sum_j \nabla f(w + u_j)`, without the mirror images.

    The one-sided baseline of Zhang, Li, Ju, arXiv:2306.08553, also known as randomized smoothing. Same objective as
    :class:`NSO`; its gradient has the additional variance sigma²‖∇²f‖²_F / k. Cost: k gradients a step and one copy of
    the weights. ``NSO(k)`` is matched in cost by 2k draws. Linear in the gradients.

    Args:
        base: The optimizer that makes the step.
        sigma: Standard deviation of the noise on each weight, or a function of the step.
        num_perturbations: k.
        noise: Name of a law, or a law.
        seed: Seed of the noise.
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
        sigma: float | Schedule,
        num_perturbations: int = 1,
        noise: str | Law = "gaussian",
        seed: int = 0,
        **options: Unpack[ShellOptions],
    ) -> None:
        settings = {
            "num_perturbations": whole("num_perturbations", num_perturbations, minimum=1, hint=_COUNT),
            "noise": resolve_law(noise),
        }
        super().__init__(base, flows.wpsgd, radii={"sigma": sigma}, settings=settings, seed=seed, **options)


class SAM(Perturbed):
    r"""Sharpness-aware minimization: the base optimizer on :math:`\nabla f(w + \rho\,g/\|g\|)`, :math:`g=\nabla f(w)`.

    Foret et al., arXiv:2010.01412. Cost: 2 gradients a step, one copy of the weights, and between the two evaluations
    one of the gradients. Not linear in the gradients: with gradient accumulation put the micro-batches inside each
    probe.

    Args:
        base: The optimizer that makes the step.
        rho: Length of the ascent step: a number, or a function of the step. 0 is the base optimizer, bit for bit, at
            the cost of two gradients.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    """

    def __init__(self, base: Optimizer, *, rho: float | Schedule, **options: Unpack[ShellOptions]) -> None:
        super().__init__(base, flows.sam, radii={"rho": rho}, **options)


def _share(name: str, value: float) -> float:
    share = nonnegative(name, value, hint="It is a share between 0 and 1.")
    if share > 1:
        raise ArgumentError(f"{name} is {value}, but it is a share and must lie between 0 and 1.")
    return share
