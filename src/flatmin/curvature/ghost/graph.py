"""The recorded graph of a forward pass: its nodes in order, what each is called, and what it saved."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor
    from torch.autograd.graph import Node

LEAF = "AccumulateGrad"


@cache
def _operation(name: str) -> str:
    return re.sub(r"Backward\d*$", "", name.rsplit("::", 1)[-1])


def kind(node: Node) -> str:
    """Return the operation that a node stands for, without suffix: ``"Addmm"``, ``"AccumulateGrad"``.

    Example:
        >>> import torch
        >>> kind(torch.ones(1, requires_grad=True).exp().grad_fn)
        'Exp'
    """
    return _operation(node.name())


def inputs_first(outputs: Iterable[Tensor]) -> list[Node]:
    """Return the nodes behind ``outputs``, each after those that it depends on."""
    order: list[Node] = []
    seen: set[Node] = set()
    ahead = [(output.grad_fn, False) for output in outputs]
    while ahead:
        node, entered = ahead.pop()
        if node is None or (not entered and node in seen):
            continue
        if entered:
            order.append(node)
            continue
        seen.add(node)
        ahead.append((node, True))
        ahead.extend((following, False) for following, _ in node.next_functions)
    return order


def leaves(nodes: Iterable[Node], parameters: Mapping[str, Tensor]) -> dict[Node, str]:
    """Return which nodes stand for which parameters."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = ((node, names.get(id(getattr(node, "variable", None)))) for node in nodes if kind(node) == LEAF)
    return {node: name for node, name in found if name is not None}


def shape_of(node: Node) -> tuple[int, ...] | None:
    """Return the shape of what a node computed, None where torch does not tell."""
    metadata: Sequence[Any] = getattr(node, "_input_metadata", ())
    return tuple(metadata[0].shape) if metadata else None


def saved(node: Node, name: str) -> Any:
    """Return what a node has saved under ``name``; None if there is nothing of that name."""
    value = getattr(node, f"_saved_{name}", None)
    if isinstance(value, int) and value >= 2**63:  # a negative number, told as one without sign
        value -= 2**64
    return value
