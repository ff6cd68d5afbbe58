"""Bayesian SAM: the one method with an update rule of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatmin import flows
from flatmin.checks import nonnegative, positive, whole
from flatmin.distributed import ShardedTotal, local
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.optim.callers import is_idle
from flatmin.optim.patterns import Radius
from flatmin.optim.shell import Perturbed, ShellOptions
from flatmin.vectors import Vector, dense


class BSAM(Perturbed):
    r"""Bayesian SAM: SAM in the metric of a Gaussian posterior whose variances are learnt along with its mean.

    With the posterior N(w, 1/(N s)), the noise n ~ N(0, I), and everything elementwise:

    .. math::
        g &= \nabla f(w + n/\sqrt{N s}), \qquad g' = \nabla f(w + \rho\,g/s) \\
        m &\leftarrow \beta_1 m + (1-\beta_1)(g' + \delta w), \qquad w \leftarrow w - \alpha\,m/s \\
        s &\leftarrow \beta_2 s + (1-\beta_2)(\sqrt s\,|g| + \gamma + \delta)

    Möllenhoff, Khan, arXiv:2210.01620, Algorithm 1, and the authors' code, where w steps with the old s. It makes the
    step itself, so it goes around parameters and not around an optimizer. Cost: 2 gradients a step; m and s are the
    size of the model each. Gradients are taken at their size: tell a loop over probes of loss scaling.

    Args:
        params: Parameters, or groups of them, as for any optimizer.
        lr: α. The authors train image models with 0.5 and anneal it.
        rho: Size of the ascent step; 0.01 in the authors' image experiments.
        num_examples: N, the number of training examples.
        betas: β₁ and β₂.
        weight_decay: δ, the precision of the prior divided by N.
        damping: γ.
        initial_precision: What s starts from.
        seed: Seed of the noise.
        **options: See :class:`~flatmin.optim.Perturbed`.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = fm.BSAM(model.parameters(), lr=0.1, rho=0.01, num_examples=50_000)
    """

    _sees_loss_scale: ClassVar[bool] = True
    _kept = (*Perturbed._kept, "_num_examples")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        rho: Radius,
        num_examples: int,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        damping: float = 0.1,
        initial_precision: float = 1.0,
        seed: int = 0,
        **options: Unpack[ShellOptions],
    ) -> None:
        self._num_examples = whole("num_examples", num_examples, minimum=1, hint="It is N, the size of the data.")
        base = _VariationalStep(
            params,
            lr=lr,
            betas=betas,
            weight_decay=nonnegative("weight_decay", weight_decay, hint="It is δ, the prior's precision over N."),
            damping=nonnegative("damping", damping, hint="It is γ; the authors take 0.1."),
            initial_precision=positive("initial_precision", initial_precision, hint="It is what s starts from."),
        )
        super().__init__(base, flows.bsam, radii={"rho": rho}, seed=seed, **options)

    @property
    def _rule(self) -> _VariationalStep:
        return self.base  # pyright: ignore[reportReturnType]

    def _arguments(self, sign: int = 1) -> dict[str, Any]:
        parameters = self._groups.parameters()
        precision = {i: local(self._rule.state_of(p)["precision"]) for i, p in parameters.items()}
        posterior = {"precision": Vector(precision, ShardedTotal(parameters)), "num_examples": self._num_examples}
        return {**super()._arguments(sign), **posterior}

    def _begin(self) -> None:
        super()._begin()
        self._rule.scaled_gradients.clear()

    def _receive(self, extras: Mapping[str, Vector], loss_scale: float) -> None:
        parameters, found = self._groups.parameters(), self._rule.scaled_gradients
        for i, tensor in (loss_scale * extras["scaled_gradient"]).tensors.items():
            found[parameters[i]] = found[parameters[i]] + tensor if parameters[i] in found else tensor


class _VariationalStep(Optimizer):
    """The update of mean, momentum and precision, from g' in ``.grad`` and √s |g| in ``scaled_gradients``.

    Where no flow has left the latter, the gradient in ``.grad`` stands for both.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], **defaults: float) -> None:
        nonnegative("lr", lr, hint="It is α.")
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ArgumentTypeError(f"betas is {betas!r}, but two numbers are needed: (0.9, 0.999).")
        for name, value in zip(("betas[0]", "betas[1]"), betas, strict=True):
            beta = nonnegative(name, value, hint="It is the share of the past, in [0, 1).")
            if beta >= 1:
                raise ArgumentError(f"{name} is {beta!r}, but it must lie in [0, 1). It is the share of the past.")
        self.scaled_gradients: dict[Tensor, Tensor] = {}
        super().__init__(params, {"lr": lr, "betas": tuple(betas), **defaults})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.scaled_gradients = {}

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return m and s of ``parameter``, made if it has none yet."""
        state = self.state[parameter]
        if "precision" not in state:
            group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
            first = group["initial_precision"]
            # In 16 bits the precision would stand still: its changes are below the spacing of the numbers around it.
            wide = torch.float32 if parameter.dtype.itemsize < 4 else parameter.dtype
            state["momentum"] = torch.zeros_like(parameter, dtype=wide, requires_grad=False)
            fill = complex(first, first) if parameter.is_complex() else first
            state["precision"] = torch.full_like(parameter, fill, dtype=wide, requires_grad=False)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; moments of 16-bit parameters keep the width they were saved in.

        Raises:
            ArgumentError: The state is that of another optimizer.
        """
        groups = state_dict["param_groups"]
        if any("initial_precision" not in group for group in groups):
            raise ArgumentError(
                "The checkpoint is that of another optimizer: its parameter groups have no 'initial_precision'. BSAM "
                "makes the step itself and goes on from its own checkpoints alone; start it anew from the weights."
            )
        super().load_state_dict(state_dict)
        mine = [parameter for group in self.param_groups for parameter in group["params"]]
        saved = [position for group in groups for position in group["params"]]
        for parameter, position in zip(mine, saved, strict=True):
            for name, value in state_dict["state"].get(position, {}).items():
                if parameter.dtype.itemsize < 4:  # torch has rounded it to the parameter's type
                    self.state[parameter][name] = value.detach().to(parameter.device, copy=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not self.scaled_gradients and is_idle([group]):  # how distributed checkpoints have a state made
                for parameter in parameters:
                    self.state_of(parameter)
            elif parameters:
                self._update(parameters, group)
        self.scaled_gradients = {}
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        decay = group["weight_decay"]
        states = [self.state_of(p) for p in parameters]
        w = [local(p) for p in parameters]
        m, s = ([local(state[name]) for state in states] for name in ("momentum", "precision"))
        g = [local(dense(p.grad)).to(t.dtype) for p, t in zip(parameters, s, strict=True) if p.grad is not None]
        wide = [x.to(t.dtype) for x, t in zip(w, s, strict=True)]
        own = [self.scaled_gradients.get(p) for p in parameters]
        scaled = [t.sqrt() * x.abs() if h is None else h.to(t.dtype) for h, t, x in zip(own, s, g, strict=True)]
        torch._foreach_lerp_(m, torch._foreach_add(g, wide, alpha=decay), 1 - beta1)
        update = torch._foreach_div(m, s)
        torch._foreach_mul_(update, group["lr"])
        torch._foreach_sub_(w, update)
        torch._foreach_mul_(s, beta2)
        torch._foreach_add_(s, torch._foreach_add(scaled, group["damping"] + decay), alpha=1 - beta2)
