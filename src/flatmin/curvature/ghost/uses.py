"""Where parameters meet data: for every parameter the nodes at which single examples first feel it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from flatmin.curvature.ghost.graph import inputs_first, kind, leaves, saved, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn
    from torch.autograd.graph import Node

# What only moves numbers around: gradients keep their norm on the way back through it.
_TRANSPOSES = frozenset(["T", "Transpose"])
_NEUTRAL = frozenset(["Alias", "Clone", "ToCopy"])
_SHAPES = frozenset(["Permute", "ReshapeAlias", "Squeeze", "UnsafeView", "Unsqueeze", "View"])
_MOVES = _SHAPES | _TRANSPOSES | _NEUTRAL


def moves(node: Node) -> bool:
    """Tell whether a node only moves numbers around."""
    return kind(node) in _MOVES


class Use(NamedTuple):
    """One place where a parameter meets data.

    Attributes:
        node: The node.
        operand: Which of its operands the parameter is.
        shape: The shape in which it arrives there.
        path: What it went through on the way, which changes no norm.
    """

    node: Node
    operand: int
    shape: tuple[int, ...]
    path: tuple[Node, ...]

    @property
    def transposed(self) -> bool:
        """Whether a matrix arrives transposed."""
        return sum(kind(step) in _TRANSPOSES for step in self.path) % 2 == 1

    @property
    def whole(self) -> bool:
        """Whether it arrives as it is, or is a matrix and arrives transposed."""
        kinds = {kind(step) for step in self.path}
        return kinds <= _NEUTRAL or (len(self.shape) == 2 and kinds <= _NEUTRAL | _TRANSPOSES)


Separates = Callable[["Node"], bool]


class Graph:
    """The graph of one forward pass, looked at from the parameters.

    Args:
        outputs: Where it ends.
        parameters: The parameters in question, by name.

    Attributes:
        nodes: All nodes, each after its operands; holding them keeps their identities.
    """

    def __init__(self, outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        self.nodes: list[Node] = inputs_first(outputs)
        self._leaves = leaves(self.nodes, parameters)
        self._consumers: dict[Node, list[tuple[Node, int]]] = defaultdict(list)
        for node in self.nodes:
            for operand, (following, _) in enumerate(node.next_functions):
                if following is not None:
                    self._consumers[following].append((node, operand))
        self._ends = {z.grad_fn for z in outputs}

    @cached_property
    def candidates(self) -> list[Node]:
        """All nodes at which a parameter may meet data, in a fixed order."""
        found: dict[Node, None] = {}

        def note(node: Node) -> bool:
            found[node] = None
            return False

        for leaf in self._leaves:
            list(self._uses(leaf, (), note))
        return list(found)

    @cached_property
    def kinds(self) -> list[str]:
        """The operations of the candidates."""
        return [kind(node) for node in self.candidates]

    def uses(self, separates: Separates) -> dict[str, list[Use] | None]:
        """Return the uses of every parameter.

        Args:
            separates: Whether the output of a node belongs to single examples.

        Returns:
            By name; None where a parameter is mixed with others, or worked on, before it meets data.
        """
        found: dict[str, list[Use] | None] = {}
        for leaf, name in self._leaves.items():
            uses = list(self._uses(leaf, (), separates))
            ends = [use for use in uses if not separates(use.node)]
            found[name] = None if ends or not uses or leaf in self._ends else uses
        return found

    def _uses(self, node: Node, path: tuple[Node, ...], separates: Separates) -> Iterator[Use]:
        shape = shape_of(node)
        if shape is None or len(path) > 50:
            return
        for consumer, operand in self._consumers[node]:
            use = Use(consumer, operand, shape, path)
            if separates(consumer) or not self._carries(use):
                yield use
            else:
                yield from self._uses(consumer, (*path, consumer), separates)

    def _carries(self, use: Use) -> bool:
        """Whether a node passes a parameter on with its norm: gradients of it and of the parameter have one norm."""
        if use.node in self._ends:
            return False
        if kind(use.node) == "Add":  # to another parameter of the same shape
            return shape_of(use.node) == use.shape and (use.operand == 0 or saved(use.node, "alpha") == 1)
        if kind(use.node) == "Embedding":  # distinct rows, such as those of all positions
            indices = saved(use.node, "indices")
            return saved(use.node, "padding_idx") == -1 and indices.unique().numel() == indices.numel()
        return moves(use.node)
