"""Parameters that live on several ranks: which part is here, and how partial sums become whole ones.

A sharded parameter (FSDP2, tensor parallelism) is a ``DTensor``. Displacing and restoring are elementwise, so they work
on the local shard; noise is one global draw of which each rank takes its slice; inner products add over ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from flatmin.vectors import plain_total


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is a ``DTensor``, without importing what defines it."""
    module = sys.modules.get("torch.distributed.tensor")  # no DTensor exists before this is imported
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the shard of ``tensor`` on this rank, sharing its memory; ``tensor`` itself where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local_slice(whole: Tensor, like: Tensor) -> Tensor:
    """Return the part of ``whole`` (of the global shape of ``like``) that belongs to the local shard of ``like``."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415 (slow to import)

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)  # pyright: ignore[reportAttributeAccessIssue]
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]


class ShardedTotal:
    """Adds partial sums of local shards over the ranks that hold the other shards (a ``flatmin.vectors.Total``).

    Args:
        parameters: The parameters by position, as the optimizer holds them.
    """

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        self._parameters = parameters

    def __call__(self, parts: Mapping[int, Tensor]) -> Tensor:
        """Return the global sum of ``parts`` (0-dim): one all-reduce for each mesh dimension that shards anything."""
        by_layout: dict[tuple, dict[int, Tensor]] = {}
        for position, part in parts.items():
            by_layout.setdefault(_shard_groups(self._parameters[position]), {})[position] = part
        totals: dict[int, Tensor] = {}
        for number, (groups, members) in enumerate(by_layout.items()):
            total = plain_total(members)
            for group in groups:
                torch.distributed.all_reduce(total, group=group)
            totals[number] = total
        return plain_total(totals)


def _shard_groups(parameter: Tensor) -> tuple:
    """Return the process groups over which ``parameter`` is split; replicated dimensions hold it whole."""
    if not is_sharded(parameter):
        return ()
    mesh, placements = parameter.device_mesh, parameter.placements  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(mesh.get_group(dim) for dim, placement in enumerate(placements) if placement.is_shard())


def sharded_modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return those of ``modules`` that FSDP2 shards."""
    module = sys.modules.get("torch.distributed.fsdp")
    return [] if module is None else [m for m in modules if isinstance(m, module.FSDPModule)]


def reshard(modules: Iterable[nn.Module]) -> None:
    """Make FSDP2 modules hold their shards again.

    After a forward pass without a backward pass (an evaluation) the root stays unsharded, and what is then written to
    the optimizer's sharded parameters would not be seen by the next forward pass.
    """
    for module in modules:
        module.reshard()  # pyright: ignore[reportCallIssue]


def are_local(modules: Iterable[nn.Module]) -> bool:
    """Tell whether gradients are being accumulated on this rank alone (``no_sync`` of DistributedDataParallel)."""
    module = sys.modules.get("torch.nn.parallel.distributed")
    if module is None:
        return False
    parallel = (m for m in modules if isinstance(m, module.DistributedDataParallel))
    return any(not m.require_backward_grad_sync for m in parallel)
