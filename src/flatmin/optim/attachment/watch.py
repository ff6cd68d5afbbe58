"""Which graphs of a model's forward passes are still to be used: how long its weights have to stay where they are.

A backward pass reads the weights that its forward pass saw, and activation checkpointing runs parts of the forward pass
again in it. torch has no hook for the end of a backward pass, nor for a graph that no backward pass will ever run
through. Both can be seen from the nodes of the graph at which the model's output hangs: a hook there is called when the
first gradient arrives, it lives as long as the node does, and what is then queued in the engine is called when the
backward pass is over, or is dropped when it fails.
"""

from __future__ import annotations

import functools
import itertools
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ENGINE: Any = torch.autograd.Variable._execution_engine  # pyright: ignore[reportAttributeAccessIssue]
_MAX_DEPTH = 8


class Graph:
    """The graph of one forward pass; it has ended when nothing holds this object any more."""

    __slots__ = ("_watch", "number")

    def __init__(self, watch: GraphWatch, number: int) -> None:
        self._watch = watch
        self.number: int = number

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self._watch.let_go(self.number)


class GraphWatch(ABC):
    """Follows the graphs of forward passes, of which several may be unused at a time.

    A graph ends with the backward pass that runs through it without retaining it, with a backward pass through it that
    fails, or when it is thrown away. If a backward pass was itself recorded (``create_graph``), the graph of its
    gradients may use what the first one used and need not pass its output: such a graph ends with the next backward
    pass that reaches a leaf.
    """

    def __init__(self) -> None:
        self._unused: dict[int, list[RemovableHandle]] = {}  # with hooks on leaves, if recorded
        self._numbers = itertools.count()
        self._passes = weakref.WeakValueDictionary[int, _BackwardPass]()

    def begin(self) -> Graph:
        """Return a new graph, which is unused until :meth:`follow` finds that nothing hangs at it, or it ends."""
        graph = Graph(self, next(self._numbers))
        self._unused[graph.number] = []
        return graph

    def follow(self, graph: Graph, output: Any) -> None:
        """Hand ``graph`` over to the nodes at which ``output`` hangs, wherever in it tensors are found."""
        nodes = {id(node): node for tensor in _tensors(output) if (node := _node(tensor)) is not None}
        for node in nodes.values():
            node.register_prehook(functools.partial(self._gradient_arrives, graph))

    def let_go(self, number: int) -> None:
        """Strike a graph off that nothing holds any more."""
        if not self._unused.get(number):
            self.end([number])

    def end(self, numbers: Iterable[int]) -> None:
        """Strike these graphs off."""
        ended = [number for number in numbers if number in self._unused]
        for number in ended:
            for hook in self._unused.pop(number):
                hook.remove()
        if ended and not self._unused:
            self.none_left()

    def forget(self) -> None:
        """Strike all graphs off, whatever happens to them from now on."""
        for hook in itertools.chain.from_iterable(self._unused.values()):
            hook.remove()
        self._unused.clear()

    @abstractmethod
    def leaves(self) -> Iterable[Tensor]:
        """Return the tensors at which gradients end."""

    @abstractmethod
    def backward_begins(self) -> None:
        """A gradient has arrived at a graph, the first of this backward pass."""

    @abstractmethod
    def backward_ended(self) -> None:
        """A backward pass is over, and gradients are where they will be looked for."""

    @abstractmethod
    def none_left(self) -> None:
        """The last graph has ended."""

    def _gradient_arrives(self, graph: Graph, gradients: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        # The hook holds the graph, which is how long it lives; what it does depends on the number alone.
        self._runs_through(graph.number)
        if torch.is_grad_enabled() and self._unused.get(graph.number) == []:
            again = functools.partial(self._leaf_is_reached, graph.number)
            self._unused[graph.number] = [leaf.register_hook(again) for leaf in self.leaves()]

    def _leaf_is_reached(self, number: int, gradient: Tensor) -> None:  # noqa: ARG002
        self._runs_through(number)

    def _runs_through(self, number: int) -> None:
        if number not in self._unused:
            return
        task = torch._C._current_graph_task_id()
        running = self._passes.get(task)
        if running is None:
            self._passes[task] = running = _BackwardPass(self)
            running.queue()
            self.backward_begins()
        running.through.add(number)
        if not torch._C._autograd._get_current_graph_task_keep_graph():  # pyright: ignore[reportAttributeAccessIssue]
            running.uses_up.add(number)


class _BackwardPass:
    """One backward pass; only torch's engine holds it, and lets go of it when the pass has failed."""

    def __init__(self, watch: GraphWatch) -> None:
        self.through: set[int] = set()
        self.uses_up: set[int] = set()
        self._watch = watch
        self._is_over = False

    def queue(self) -> None:
        """Have the engine call when all is computed: behind all others, since DDP and FSDP finish gradients so too."""
        _ENGINE.queue_callback(lambda: _ENGINE.queue_callback(self._finish))

    def _finish(self) -> None:
        self._is_over = True
        try:
            self._watch.backward_ended()
        finally:
            self._watch.end(self.uses_up)

    def __del__(self) -> None:
        if not self._is_over and not sys.is_finalizing():
            self._watch.end(self.through)


def _node(tensor: Tensor) -> Any:
    """Return a node that every gradient of ``tensor`` passes; None for a leaf.

    For a view it is that of its base: writing into the view in place would put the view's own node aside.
    """
    base = tensor._base
    return tensor.grad_fn if base is None or base.grad_fn is None else base.grad_fn


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors in ``value``: in containers of any nesting, and in the attributes of other objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth < _MAX_DEPTH:
        for item in _contents(value):
            yield from _tensors(item, depth + 1)


def _contents(value: Any) -> Collection[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, (type, nn.Module)) or callable(value):
        return ()
    slots = (getattr(value, name, None) for kind in type(value).__mro__ for name in _slots(kind))
    return [*getattr(value, "__dict__", {}).values(), *slots]


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
