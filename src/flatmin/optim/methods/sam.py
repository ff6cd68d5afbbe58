"""The sharpness-aware family around any base optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Unpack

from torch.optim import Optimizer

from flatmin import flows
from flatmin.checks import nonnegative
from flatmin.noise import Law, resolve_law
from flatmin.optim.patterns import Pattern, Radius, require_patterns
from flatmin.optim.shell import Perturbed, ShellOptions

OFFICIAL: Mapping[Pattern, bool] = {"*weight*": True, "": True, "*": False}
"""Where ASAM adapts, as in its authors' code: tensors with "weight" in their name. Tensors without a name count too."""


class SAM(Perturbed):
    r"""Sharpness-aware minimization: the base optimizer on :math:`\nabla f(w + \rho\,g/\|g\|)`, :math:`g=\nabla f(w)`.

    Foret et al., arXiv:2010.01412. Cost: 2 gradients a step, one copy of the weights, and between the two evaluations
    one of the gradients. Not linear in the gradients: with gradient accumulation put the micro-batches inside each
    probe.

    Args:
        base: The optimizer that makes the step.
        rho: Length of the ascent step: a number, a function of the step, or a mapping from patterns of parameter names
            to either. 0 is the base optimizer, bit for bit, at the cost of two gradients.
        local_ascent: Under DistributedDataParallel, have each rank climb the gradient of its own examples
            (m-sharpness), and average only the gradient found there: one all-reduce a step.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    """

    def __init__(
        self, base: Optimizer, *, rho: Radius, local_ascent: bool = False, **options: Unpack[ShellOptions]
    ) -> None:
        super().__init__(base, flows.sam, radii={"rho": rho}, local_ascents=int(local_ascent), **options)


class USAM(Perturbed):
    r"""Unnormalized SAM: the base optimizer on :math:`\nabla f(w + \rho\,\nabla f(w))`.

    Andriushchenko, Flammarion, arXiv:2206.06232. Cost as :class:`SAM`. The size of the ascent follows that of the
    gradient, so a loop over probes has to be told of loss scaling: ``opt.probes(scaler=scaler)``.

    Args:
        base: The optimizer that makes the step.
        rho: Size of the ascent step, as for :class:`SAM`.
        local_ascent: As for :class:`SAM`.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.USAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.02)
    """

    _sees_loss_scale: ClassVar[bool] = True

    def __init__(
        self, base: Optimizer, *, rho: Radius, local_ascent: bool = False, **options: Unpack[ShellOptions]
    ) -> None:
        super().__init__(base, flows.usam, radii={"rho": rho}, local_ascents=int(local_ascent), **options)


class ASAM(Perturbed):
    r"""Adaptive SAM: the base optimizer on :math:`\nabla f(w + \rho\,T_w^2 g/\|T_w g\|)`, :math:`T_w = |w| + \eta`.

    Kwon et al., arXiv:2102.11600, elementwise, as in the authors' code: T_w for tensors with "weight" in their name,
    the identity for the others (biases; the affine weights of norms do count as weights). Cost as :class:`SAM`, and one
    tensor the size of the model more while the ascent is computed.

    Args:
        base: The optimizer that makes the step.
        rho: Length of the ascent step, relative to the weights: about ten times that of SAM.
        eta: η, which keeps weights near zero moving.
        adaptive: Patterns of parameter names, or classes of modules, and whether T_w applies there. Parameters that are
            in no module count as weights.
        local_ascent: As for :class:`SAM`.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.ASAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: Radius,
        eta: float = 0.01,
        adaptive: Mapping[Pattern, bool] = OFFICIAL,
        local_ascent: bool = False,
        **options: Unpack[ShellOptions],
    ) -> None:
        eta = nonnegative("eta", eta, hint="It is added to |w|; the authors take 0.01.")
        require_patterns("adaptive", adaptive)
        settings = {
            "eta": {key: eta if applies else 1.0 for key, applies in adaptive.items()},
            "adaptive": {key: float(applies) for key, applies in adaptive.items()},
        }
        ascents = int(local_ascent)
        super().__init__(base, flows.asam, radii={"rho": rho}, settings=settings, local_ascents=ascents, **options)


class RSAM(Perturbed):
    r"""Random SAM: ascend from a random point nearby, along noise and gradient together.

    .. math:: \nabla f\big(w + \rho\,(\delta + \lambda g_\delta)/\|\delta + \lambda g_\delta\|\big),\quad
        g_\delta = \nabla f(w + \delta),\quad \delta\sim\mathcal N(0, \sigma^2\|w_{\text{filter}}\|^2)

    Liu et al., NeurIPS 2022. Cost as :class:`SAM`, and the noise is held while the ascent is computed. Noise and
    gradient are added, so a loop over probes has to be told of loss scaling: ``opt.probes(scaler=scaler)``.

    Args:
        base: The optimizer that makes the step.
        rho: Length of the ascent step, as for :class:`SAM`.
        sigma: Standard deviation of δ relative to the norm of each filter; forms as for :class:`NSO`.
        gradient_weight: λ.
        noise: Name of a law, or a law.
        seed: Seed of the noise.
        local_ascent: As for :class:`SAM`.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.RSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, sigma=0.01)
    """

    _sees_loss_scale: ClassVar[bool] = True

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: Radius,
        sigma: Radius,
        gradient_weight: float = 1.0,
        noise: str | Law = "gaussian",
        seed: int = 0,
        local_ascent: bool = False,
        **options: Unpack[ShellOptions],
    ) -> None:
        weight = nonnegative("gradient_weight", gradient_weight, hint="It is λ; the paper's default is 1.")
        settings = {"gradient_weight": weight, "noise": resolve_law(noise)}
        radii, ascents = {"rho": rho, "sigma": sigma}, int(local_ascent)
        super().__init__(base, flows.rsam, radii=radii, settings=settings, seed=seed, local_ascents=ascents, **options)
