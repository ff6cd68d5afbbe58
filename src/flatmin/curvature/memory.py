"""Memory: what a graph holds, and what a device has left."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from flatmin.curvature.graph import nodes_behind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from flatmin.curvature.graph import Root

_UNKNOWN = 2**30  # where nothing can be asked
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def available_memory(device: torch.device) -> int:
    """Return the bytes that are free on ``device``, in a container those it may take; 1 GiB where that is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    names = getattr(os, "sysconf_names", {})
    if device.type == "cpu" and {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return int(max(0, min(free, container_memory(_CGROUPS))))
    return _UNKNOWN


def container_memory(root: Path) -> float:
    """Return the bytes that Linux's control group at ``root`` may still take; infinite where there is no limit.

    What it has read from files counts as used, and is given back where memory gets short.
    """
    for files in _LIMITS:
        try:
            limit, used = (int((root / name).read_text()) for name in files[:2])  # "max" is no limit
            found = dict(line.split() for line in (root / files[2]).read_text().splitlines())
        except (OSError, ValueError):
            continue
        return limit - used + int(found.get("total_inactive_file", found.get("inactive_file", 0)))
    return math.inf


@dataclass(frozen=True)
class Held:
    """What a graph, or several, hold in saved tensors.

    Attributes:
        storages: Address to number of bytes: what several graphs share counts once.
        is_packed: Whether some tensors are packed by hooks (activation checkpointing, offloading), and so not counted.
    """

    storages: Mapping[int, int] = field(default_factory=dict)
    is_packed: bool = False

    @property
    def bytes(self) -> int:
        """The number of bytes."""
        return sum(self.storages.values())

    def __or__(self, other: Held) -> Held:
        return Held({**self.storages, **other.storages}, self.is_packed or other.is_packed)


def held_by(roots: Iterable[Root]) -> Held:
    """Return what ``roots``, where they are tensors, and the graph behind them hold, parameters aside."""
    roots = list(roots)
    found: list[Any] = [root for root in roots if isinstance(root, Tensor)]
    for node in nodes_behind(roots):
        found += _saved(node)
    tensors = (x for x in found if isinstance(x, Tensor) and not _shows_parameter(x))
    storages = (part.untyped_storage() for x in tensors for part in strided_parts(x))
    return Held({s.data_ptr(): s.nbytes() for s in storages}, any(x is _PACKED for x in found))


def graph_bytes(roots: Iterable[Root]) -> int:
    """Return the bytes that ``roots`` and the graph behind them hold, each storage once, parameters aside.

    Example:
        >>> w = torch.ones(4, requires_grad=True)
        >>> graph_bytes([w.exp().sum()])                           # exp saves its result, and the sum is a number
        20
    """
    return held_by(roots).bytes


def _shows_parameter(tensor: Tensor) -> bool:
    """Tell whether it is a parameter or a view of one: a linear layer saves its weight transposed."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def strided_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors whose storages hold the numbers of ``tensor``: itself, or what a sparse or wrapped one has."""
    if tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in _COMPRESSED:
        yield from (getattr(tensor, name)() for name in (*_COMPRESSED[tensor.layout], "values"))
    elif is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from strided_parts(getattr(tensor, name))
    elif tensor.layout == torch.strided and not tensor._is_zerotensor():  # the others hide theirs, or have none
        yield tensor


_ROWS, _COLUMNS = ("crow_indices", "col_indices"), ("ccol_indices", "row_indices")
_COMPRESSED = {
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}

_PACKED = object()
_NAMES: dict[type, list[tuple[str, str]]] = {}


def _saved(node: Any) -> Iterator[Any]:
    """Yield what a node has saved for its derivative; what hooks have packed is not unpacked, which might compute."""
    names = _NAMES.get(type(node))
    if names is None:
        names = [(f"_raw{n}", n) for n in dir(type(node)) if n.startswith("_saved_")]
        _NAMES[type(node)] = names = names or [("_raw_saved_tensors", "saved_tensors")]  # of functions in Python
    for raw, name in names:
        kept = getattr(node, raw, None)
        if any(getattr(one, "unpack_hook", None) is not None for one in (kept if isinstance(kept, tuple) else (kept,))):
            yield _PACKED
            continue
        value = getattr(node, name, None)
        yield from value if isinstance(value, (tuple, list)) else (value,)
