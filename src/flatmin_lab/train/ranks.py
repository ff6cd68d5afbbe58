"""One run over several processes: which part of a batch is whose, and what all of them must know.

Each rank draws the whole batch, augmentation included, and takes its share; gradients are averages over the whole
batch, whatever the number of ranks. Noise is shared, so that the run is that of one process to rounding (networks that
normalise over the batch do so over their share).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flatmin.errors import ArgumentError, FlatminError, RankError
from flatmin_lab.cli import BAD_INPUT
from flatmin_lab.data.splits import Split
from flatmin_lab.errors import LabError
from flatmin_lab.train.shards import gathered, units

_STARTED = "TORCHELASTIC_RUN_ID"  # is in the environment of processes that torchrun started
_T = TypeVar("_T")


class Alone:
    """One process that makes a run by itself.

    Attributes:
        rank: Its number among all.
        world: How many there are.
    """

    rank, world = 0, 1

    def spread(self, model: nn.Module) -> nn.Module:
        """The network as the training loop calls it."""
        return model

    def network(self, model: nn.Module) -> nn.Module:
        """The network within what `spread` returned, which every rank can evaluate."""
        return model

    def purpose(self, purpose: str) -> str:
        """The name of a random stream that differs from rank to rank, the first having that of one process."""
        return f"{purpose}, rank {self.rank}" if self.rank else purpose

    def share(self, piece: Split) -> tuple[Split, float]:
        """This rank's examples, and the weight of their mean loss in an average over ranks."""
        return piece, 1.0

    def mean(self, value: Tensor) -> Tensor:
        """The average over ranks."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag

    def each(self, value: _T) -> list[_T]:
        """What every rank has, in their order."""
        return [value]

    def of_first(self, value: _T) -> _T:
        """What the first rank has."""
        return value

    def whole(self, state: Any) -> Any:
        """A state with its sharded tensors gathered."""
        return tree_map(gathered, state)

    def agreed(self, compute: Callable[[], _T]) -> _T:
        """What ``compute`` returns, once all ranks have come through it.

        Raises:
            FlatminError: It failed here; on the first rank for what failed on others too.
            RankError: It failed on another rank, and the first one tells of it.
        """
        return compute()


class Group(Alone):
    """The processes that ``torchrun`` started, each with a replica of the network (DistributedDataParallel)."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def spread(self, model: nn.Module) -> nn.Module:
        """The network as the training loop calls it."""
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def network(self, model: nn.Module) -> nn.Module:
        """The network within what `spread` returned, which every rank can evaluate."""
        return model.module  # pyright: ignore[reportReturnType]

    def share(self, piece: Split) -> tuple[Split, float]:
        """This rank's examples, and the weight of their mean loss in an average over ranks.

        A rank for which none is left takes part with an example of weight zero, since the others wait for it.
        """
        count = len(piece)
        begin, end = (count * r // self.world for r in (self.rank, self.rank + 1))
        if begin == end:
            return piece[:1], 0.0
        return piece[begin:end], (end - begin) * self.world / count

    def mean(self, value: Tensor) -> Tensor:
        """The average over ranks."""
        total = value.to(self._device, copy=True)
        dist.all_reduce(total)
        return (total / self.world).to(value.device)

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.mean(torch.tensor(float(flag))) > 0)

    def each(self, value: _T) -> list[_T]:
        """What every rank has, in their order."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def of_first(self, value: _T) -> _T:
        """What the first rank has."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def agreed(self, compute: Callable[[], _T]) -> _T:
        """What ``compute`` returns, once all ranks have come through it.

        Raises:
            FlatminError: It failed here; on the first rank for what failed on others too.
            RankError: It failed on another rank, and the first one tells of it.
        """
        error, result = None, None
        try:
            result = compute()
        except FlatminError as raised:
            error = raised
        messages = {rank: message for rank, message in enumerate(self.each(error and str(error))) if message}
        if not messages:
            return result  # pyright: ignore[reportReturnType]
        if self.rank:
            raise RankError("another rank failed. The first one says why.") from error
        if error is not None and len(set(messages.values())) == 1:
            raise error
        raise LabError(" ".join(f"rank {rank}: {message}" for rank, message in messages.items())) from error


class Shards(Group):
    """The processes that ``torchrun`` started, each with a shard of the network (FSDP2)."""

    def spread(self, model: nn.Module) -> nn.Module:
        """The network as the training loop calls it."""
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh(self._device.type, (self.world,))
        for unit in units(model):
            fully_shard(unit, mesh=mesh)
        fully_shard(model, mesh=mesh)  # changes the class of the module it is given
        return model

    def network(self, model: nn.Module) -> nn.Module:
        """The network within what `spread` returned, which every rank can evaluate."""
        return model


@contextmanager
def joined(parallel: str, device: str) -> Iterator[Alone]:
    """Be one of the processes of a run, until the end of the context.

    Args:
        parallel: ``none``, ``ddp`` or ``fsdp``.
        device: Where each trains: a kind of device, of which each rank takes its own.

    Yields:
        This process among the others.

    Raises:
        ArgumentError: ``parallel`` does not go with how the process was started.
        RankError: Another process ended.
    """
    started = _STARTED in os.environ
    if parallel == "none":
        if started and int(os.environ["WORLD_SIZE"]) > 1:
            raise ArgumentError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, but parallel is 'none': each would make the "
                "same run. Say --parallel ddp or --parallel fsdp, or start one process."
            )
        yield Alone()
        return
    if not started:
        raise ArgumentError(
            f"parallel is {parallel!r}, but torchrun did not start this process. Start all of them: torchrun "
            f"--nproc-per-node 2 -m flatmin_lab train RUN.toml --parallel {parallel}"
        )
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Shards() if parallel == "fsdp" else Group()
    except RuntimeError as error:
        if isinstance(error, FlatminError) or not _is_of_connection(error):
            raise
        raise RankError("another rank ended in the middle. Look at its output for the error.") from error
    finally:
        dist.destroy_process_group()


@contextmanager
def told_by_rank() -> Iterator[None]:
    """Let messages of other ranks than the first say whose they are, and those that say nothing new be silent.

    Yields:
        Nothing.

    Raises:
        LabError: The error of the body, with its rank.
        SystemExit: Another rank failed, which says why.
    """
    rank = int(os.environ.get("RANK", "0")) if _STARTED in os.environ else 0
    try:
        yield
    except RankError as error:
        if rank == 0:
            raise
        raise SystemExit(BAD_INPUT) from error
    except FlatminError as error:
        if rank == 0:
            raise
        raise LabError(f"rank {rank}: {error}") from error


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed, as opposed to what one rank does by itself."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "Connection" in str(error)
