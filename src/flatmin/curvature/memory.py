"""Memory: what a graph holds, and what a device has left."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNKNOWN = 2**30  # where nothing can be asked


def available_memory(device: torch.device) -> int:
    """Return the bytes that are free on ``device``; 1 GiB where that cannot be asked."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    names = getattr(os, "sysconf_names", {})
    if device.type == "cpu" and {"SC_AVPHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _UNKNOWN


def graph_bytes(roots: Iterable[Tensor]) -> int:
    """Return the bytes that the graph behind ``roots`` holds in saved tensors, each storage once, parameters aside.

    Example:
        >>> w = torch.ones(4, requires_grad=True)
        >>> graph_bytes([w.exp().sum()])                           # exp saves its result
        16
    """
    storages: dict[int, int] = {}
    ahead, seen = [root.grad_fn for root in roots], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for tensor in _saved(node):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        ahead += [following for following, _ in node.next_functions]
    return sum(storages.values())


_SAVED_NAMES: dict[type, list[str]] = {}


def _saved(node: torch.autograd.graph.Node) -> Iterable[Tensor]:
    """Return the tensors that a node has saved for its derivative."""
    names = _SAVED_NAMES.get(type(node))
    if names is None:
        names = [n for n in dir(type(node)) if n.startswith("_saved_")] or ["saved_tensors"]
        _SAVED_NAMES[type(node)] = names
    for name in names:
        value = getattr(node, name, None)
        values = value if isinstance(value, (tuple, list)) else (value,)
        yield from (item for item in values if isinstance(item, Tensor) and not isinstance(item, nn.Parameter))
