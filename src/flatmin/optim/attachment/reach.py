"""Whether the hooks of an attachment come early enough for weights to move before they are read, wherever that is."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import Tensor, nn

from flatmin.distributed import is_sharded, sharded_modules
from flatmin.errors import ArgumentError
from flatmin.optim import guards
from flatmin.optim.attachment.hooks import ModelHook


def require_hookable(module: nn.Module, tops: Iterable[nn.Module]) -> None:
    """Raise if weights live where no hook reaches: in DeepSpeed, the older FSDP, or replicas of ``DataParallel``.

    Args:
        module: The module with the hooks on it.
        tops: The topmost modules around the parameters.

    Raises:
        ArgumentError: They do.
    """
    around = [module, *tops]
    guards.require_plain_loop(around, climbs_alone=False)
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(outer, fsdp.FullyShardedDataParallel) for outer in around):
        raise ArgumentError(
            "The model is in a FullyShardedDataParallel, whose flattened parameters get the same noise on every rank. "
            "Shard it with torch.distributed.fsdp.fully_shard (FSDP2) instead."
        )
    if getattr(module, "_is_replica", False):
        raise ArgumentError(
            "The attached model is replicated by torch.nn.DataParallel, and replicas were made before its hooks could "
            "displace the weights. Attach to the DataParallel module, or use DistributedDataParallel."
        )


def require_reach(module: nn.Module, parameters: Iterable[Tensor], tops: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the FSDP2 modules to reshard at each move; raise if ``module`` would see other weights than are moved.

    Args:
        module: The module that is called, with the hooks on it.
        parameters: What the optimizer holds.
        tops: The topmost modules around them.

    Raises:
        ArgumentError: The hooks sit where they do not help; the message says where to put them.
    """
    tops = list(tops)
    require_hookable(module, tops)
    if not any(is_sharded(parameter) for parameter in parameters):
        return []
    sharded = sharded_modules(child for top in tops for child in top.modules())
    if any(part is module for outer in sharded if outer is not module for part in outer.modules()):
        raise ArgumentError(
            "The attached model is a part of a module that fully_shard was applied to, which gathers weights before "
            "the part is called. Attach to the outermost such module."
        )
    _require_first_hook(module)
    return sharded


def _require_first_hook(module: nn.Module) -> None:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, ModelHook):
            return
        if getattr(hook, "__module__", "").startswith("torch.distributed.fsdp"):
            raise ArgumentError(
                "fully_shard was applied to the model after it was attached, so weights are gathered before they are "
                "displaced. Attach afterwards; where a framework shards (accelerator.prepare, Trainer), in a callback "
                "at the start of training."
            )
