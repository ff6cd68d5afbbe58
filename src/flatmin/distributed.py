"""Parameters that live on several ranks: which part is here, and how partial sums become whole ones.

A sharded parameter (FSDP2, tensor parallelism) is a ``DTensor``. Displacing and restoring are elementwise, so they work
on the local shard; noise is one global draw of which each rank takes its slice; inner products add over ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flatmin.errors import RankError
from flatmin.vectors import plain_total


def is_parallel() -> bool:
    """Tell whether this is one of several processes that talk to each other."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def this_rank() -> int:
    """Return this process's rank; 0 where nothing is distributed."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is a ``DTensor``, without importing what defines it."""
    module = sys.modules.get("torch.distributed.tensor")  # no DTensor exists before this is imported
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the shard of ``tensor`` on this rank as real numbers, sharing its memory.

    A whole tensor is its own shard, and a complex one is seen as pairs of real and imaginary parts: all that displaces
    and restores is the same for both.
    """
    shard = tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]
    return torch.view_as_real(shard) if shard.is_complex() else shard


def real_shape(tensor: Tensor) -> torch.Size:
    """Return the global shape of ``tensor``, a complex one being seen as pairs of real numbers."""
    return torch.Size((*tensor.shape, 2)) if tensor.is_complex() else tensor.shape


def local_slice(whole: Tensor, like: Tensor) -> Tensor:
    """Return the part of ``whole`` (of the global real shape of ``like``) that belongs to the shard of ``like``."""
    if not is_sharded(like):
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415 (slow to import)

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)  # pyright: ignore[reportAttributeAccessIssue]
    return whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]


def norms_over(parameter: Tensor, *, first: int) -> Tensor:
    """Return the Euclidean norms over the dimensions from ``first`` on, kept as ones, for the local shard.

    Sums of squares are added over the ranks that hold other parts of the same slices: one small all-reduce for each
    dimension of the mesh that cuts through them.
    """
    values = local(parameter)
    wide = values.float() if values.dtype.itemsize < 4 else values
    dims = tuple(range(first, wide.dim()))
    squares = wide.square().sum(dims, keepdim=True) if dims else wide.square()
    for dim, placement in enumerate(parameter.placements if is_sharded(parameter) else ()):  # pyright: ignore[reportAttributeAccessIssue]
        if placement.is_shard() and placement.dim >= first:
            torch.distributed.all_reduce(squares, group=parameter.device_mesh.get_group(dim))  # pyright: ignore[reportAttributeAccessIssue]
    return squares.sqrt().to(values.dtype)


class ShardedTotal:
    """Adds partial sums of local shards over the ranks that hold the other shards (a ``flatmin.vectors.Total``).

    Args:
        parameters: The parameters by position, as the optimizer holds them.
    """

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        self._parameters = parameters

    def __call__(self, parts: Mapping[int, Tensor]) -> Tensor:
        """Return the global sum of ``parts`` (0-dim): one all-reduce for each mesh dimension that shards anything."""
        totals: dict[int, Tensor] = {}
        for number, (groups, members) in enumerate(self._by_layout(parts)):
            total = plain_total(members)
            for group in groups:
                torch.distributed.all_reduce(total, group=group)
            totals[number] = total
        return plain_total(totals)

    def each(self, parts: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the global value of each of ``parts`` (0-dim), by as many all-reduces."""
        found = dict(parts)
        for groups, members in self._by_layout(parts):
            if groups:
                first = next(iter(members.values()))
                row = torch.stack([part.to(first.device) for part in members.values()])
                for group in groups:
                    torch.distributed.all_reduce(row, group=group)
                found |= zip(members, row.unbind(), strict=True)
        return found

    def _by_layout(self, parts: Mapping[int, Tensor]) -> list[tuple[tuple, dict[int, Tensor]]]:
        """Return ``parts`` by the process groups over which their parameters are split."""
        by_layout: dict[tuple, dict[int, Tensor]] = {}
        for position, part in parts.items():
            by_layout.setdefault(shard_groups(self._parameters[position]), {})[position] = part
        return list(by_layout.items())


def shard_groups(parameter: Tensor) -> tuple[Any, ...]:
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


def mesh_groups(tensors: Iterable[Tensor]) -> list[Any]:
    """Return the process groups that together reach every rank of the mesh of the sharded ones; none if none is."""
    mesh = next((tensor.device_mesh for tensor in tensors if is_sharded(tensor)), None)  # pyright: ignore[reportAttributeAccessIssue]
    return [] if mesh is None else [mesh.get_group(dim) for dim in range(mesh.ndim)]


def sum_over_ranks(compute: Callable[[], Tensor], groups: Sequence[Any]) -> Tensor:
    """Return the sum over ranks of what each computes, on all of them; one small all-reduce and one of its size.

    An error on one rank becomes one on all, where otherwise the others would wait for it in vain.

    Args:
        compute: Returns a tensor of the same shape and type on every rank, which is overwritten.
        groups: Process groups over which is added, one after the other.

    Raises:
        RankError: ``compute`` failed on another rank; on the rank itself the error is its own.
    """
    if not groups:
        return compute()
    error, result = None, None
    try:
        result = compute()
    except RankError:  # all ranks know already
        raise
    except Exception as raised:  # noqa: BLE001 (raised again below)
        error = raised
    failed = _added(torch.tensor([float(error is not None)]), groups)
    if error is not None:
        raise error
    if result is None or failed.item():
        raise RankError("another rank failed, so there is nothing to add up. Look at its output for the error.")
    return _added(result, groups)


def _added(tensor: Tensor, groups: Sequence[Any]) -> Tensor:
    """Return the sum of ``tensor`` over the ranks; it travels by a device that the groups can reduce on."""
    is_foreign = torch.distributed.get_backend(groups[0]) == "nccl" and not tensor.is_cuda
    moved = tensor.cuda() if is_foreign else tensor
    for group in groups:
        torch.distributed.all_reduce(moved, group=group)
    return moved.to(tensor.device)


class GradientAveraging:
    """The averaging of gradients over ranks by DistributedDataParallel, which one backward pass can leave to a later.

    Args:
        modules: The modules around the parameters; those that average are found among them.
    """

    def __init__(self, modules: Iterable[nn.Module] = ()) -> None:
        module = sys.modules.get("torch.nn.parallel.distributed")
        found = () if module is None else (m for m in modules if isinstance(m, module.DistributedDataParallel))
        self._replicas: list[Any] = list(found)
        self.is_put_off = False

    @property
    def is_kept_back(self) -> bool:
        """Whether the user accumulates gradients on this rank alone for now (``no_sync``)."""
        return not self.is_put_off and any(not m.require_backward_grad_sync for m in self._replicas)

    @property
    def can_be_put_off(self) -> bool:
        """Whether there is an averaging to put off, and nothing that forbids it (``static_graph`` does)."""
        return bool(self._replicas) and not self.is_kept_back and not any(m.static_graph for m in self._replicas)

    @property
    def needs_every_parameter(self) -> bool:
        """Whether every parameter is sure to take part in every backward pass."""
        return not any(m.find_unused_parameters for m in self._replicas)

    def put_off(self) -> None:
        """Keep the gradients of the next forward and backward pass on this rank."""
        self.is_put_off = True
        for module in self._replicas:
            module.require_backward_grad_sync = False

    def resume(self) -> None:
        """Average again, as found."""
        if self.is_put_off:
            for module in self._replicas:
                module.require_backward_grad_sync = True
        self.is_put_off: bool = False

    def mean(self, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the averages over ranks of 0-dim tensors, by one small all-reduce."""
        if not values or not self._replicas:
            return dict(values)
        first = next(iter(values.values()))
        row = torch.stack([value.to(first.device) for value in values.values()])
        group = self._replicas[0].process_group
        torch.distributed.all_reduce(row, group=group)
        return dict(zip(values, (row / torch.distributed.get_world_size(group)).unbind(), strict=True))
