"""What a step refuses: losses and gradients that are missing or not finite. The weights are then as they were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from flatmin.distributed import is_sharded, local
from flatmin.errors import ArgumentError, ArgumentTypeError, ClosureError, NonFiniteError
from flatmin.optim.groups import Groups
from flatmin.perturb.gradients import current


def require_trainable(parameters: Mapping[int, Tensor], num_given: int) -> None:
    """Raise if nothing is left to train."""
    if not parameters:
        raise ArgumentError(
            f"None of the {num_given} parameters of the base optimizer requires a gradient, so there is nothing to "
            "train. Was the model frozen? Unfreeze what should learn: parameter.requires_grad_(True)."
        )


def require_usable(parameters: Mapping[int, Tensor]) -> None:
    """Raise if a parameter cannot be displaced: not initialised yet, or sharing its memory with another."""
    owners: dict[int, int] = {}
    for number, parameter in parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise ArgumentError(
                f"Parameter number {number} is not initialised yet (a lazy module). Run one forward pass before the "
                "optimizer is made."
            )
        if parameter.device.type == "meta" or is_sharded(parameter) or parameter.numel() == 0:
            continue
        if parameter.untyped_storage().nbytes() == 0:
            raise ArgumentError(
                f"Parameter number {number} is the gathered copy of a sharded one, and has been let go of. Was the "
                "base optimizer made after a forward pass of an FSDP2 model without a backward pass? Make it right "
                "after fully_shard, or call model.reshard() before."
            )
        first = owners.setdefault(parameter.data_ptr(), number)
        if first != number:
            raise ArgumentError(
                f"Parameters number {first} and {number} share their memory, so that each would be displaced by the "
                "noise of both. Tie weights by using one Parameter in both places: b.weight = a.weight."
            )


def require_plain_loop(modules: Iterable[nn.Module], *, climbs_alone: bool) -> None:
    """Raise if one of ``modules`` (the topmost around the parameters) runs a loop in which no step can be taken here.

    Args:
        modules: Those modules.
        climbs_alone: Whether the first gradient of the method stays on its rank.
    """
    for module in modules:
        if type(module).__module__.startswith("deepspeed"):
            raise ArgumentError(
                f"The model is in a {type(module).__name__} of DeepSpeed, whose backward() also steps, and which keeps "
                "the weights that are trained in its engine: what is displaced here would not be seen. Train with "
                "FSDP2 (torch.distributed.fsdp.fully_shard) or DistributedDataParallel."
            )
        if getattr(module, "static_graph", False) and (climbs_alone or not module.require_backward_grad_sync):
            raise ArgumentError(
                "DistributedDataParallel(static_graph=True) cannot leave the averaging of gradients to a later "
                "backward pass, which m-sharpness (local_ascent=True) and no_sync() ask for: torch stops with an "
                "internal error. Drop static_graph=True, or local_ascent and no_sync()."
            )


def require_scaler(scaler: Any) -> None:
    """Raise unless ``scaler`` is None or scales losses."""
    if scaler is not None and not callable(getattr(scaler, "scale", None)):
        raise ArgumentTypeError(f"scaler is {scaler!r}, but a torch.amp.GradScaler is needed, or nothing.")


def require_loss(loss: Any, parameters: Mapping[int, Tensor]) -> None:
    """Raise if a closure returned no loss or left no gradient."""
    if loss is None:
        raise ClosureError(
            "The closure returned None, so its loss is unknown; most likely its `return loss` is missing. "
            "The weights are as they were."
        )
    if not isinstance(loss, Real) and not (isinstance(loss, Tensor) and loss.numel() == 1):
        kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ClosureError(
            f"The closure returned {kind}, but the loss must be one number. The weights are as they were."
        )
    if all(parameter.grad is None for parameter in parameters.values()):
        raise ClosureError(
            "The closure left no gradient on any parameter; most likely it does not call loss.backward(), or the "
            "optimizer holds other parameters than the model. The weights are as they were."
        )


class FiniteCheck:
    """Refuses losses and gradients that are NaN or infinite.

    Args:
        wanted: Whether to look; None: on a CPU only, since on an accelerator the answer has to be waited for.
    """

    def __init__(self, wanted: bool | None) -> None:
        self._wanted = wanted

    def loss(self, loss: Any, groups: Groups) -> None:
        """Raise if ``loss`` (a scalar tensor or a number) is not finite."""
        if self._looks(groups) and not bool(torch.isfinite(torch.as_tensor(loss)).all()):
            raise NonFiniteError(
                f"The loss at step {groups.step} is {torch.as_tensor(loss).detach().item()}. {_causes(groups)}; "
                "lower one of them, or pass check_finite=False to go on regardless."
            )

    def gradients(self, groups: Groups) -> None:
        """Raise if a gradient holds NaN or infinity."""
        if not self._looks(groups):
            return
        present = {i: local(g) for i, g in current(groups.parameters()).items()}
        values = {i: g.coalesce().values() if g.is_sparse else g for i, g in present.items()}
        # Sums are one cheap pass that shows NaN and infinity. One can overflow by itself: only a "no" is looked into.
        sums = [value.sum() for value in values.values()]
        if not sums or bool(torch.isfinite(torch.stack([s.to(sums[0]) for s in sums])).all()):
            return
        bad = [i for i, value in values.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise NonFiniteError(
                f"The gradient at step {groups.step} is NaN or infinite in {len(bad)} of {len(values)} parameters (the "
                f"first is number {bad[0]}, of shape {tuple(values[bad[0]].shape)}). {_causes(groups)}; zero the "
                "gradients before you go on, or pass check_finite=False to step regardless."
            )

    def _looks(self, groups: Groups) -> bool:
        if self._wanted is not None:
            return self._wanted
        return all(parameter.device.type == "cpu" for parameter in groups.parameters().values())


def _causes(groups: Groups) -> str:
    radii = ", ".join(f"{name} = {radius}" for name, radius in groups.radii().items())
    return f"Likely causes: too large a learning rate or radius ({radii}), or bad data. The weights are as they were"
