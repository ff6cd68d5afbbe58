"""Walking the graphs that autograd records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from torch.autograd.graph import Node

    Root = Tensor | GradientEdge


def nodes_behind(roots: Iterable[Root]) -> Iterator[Node]:
    """Yield every node of the graph behind ``roots`` once.

    Example:
        >>> import torch
        >>> w = torch.ones(3, requires_grad=True)
        >>> [node.name() for node in nodes_behind([w.relu().sum()])][:2]
        ['SumBackward0', 'ReluBackward0']
    """
    ahead = [root.node if isinstance(root, GradientEdge) else root.grad_fn for root in roots]
    seen = set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            ahead += [following for following, _ in node.next_functions]
