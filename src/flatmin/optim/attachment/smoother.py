"""Displaces the weights of a model for each training forward pass, by hooks, and puts them back when they may be."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from flatmin.distributed import local
from flatmin.errors import ArgumentError
from flatmin.optim.attachment.excursion import Excursion
from flatmin.optim.attachment.hooks import hang_up
from flatmin.optim.attachment.micro_batches import MicroBatches
from flatmin.optim.attachment.reach import require_reach
from flatmin.optim.attachment.trace import TraceWitness
from flatmin.optim.attachment.watch import Graph, GraphWatch
from flatmin.perturb import Hosts, Snapshots
from flatmin.perturb.observation import is_measuring

_NOTHING_SMOOTHED = (
    "A step was taken without a training forward pass of the attached model since the step before, so that nothing was "
    "smoothed. Likely causes: the model is in evaluation mode (call model.train()), or your loop calls another module "
    "than the attached one (attach to the one that it calls)."
)


class Smoother(GraphWatch):
    """Is told by hooks of all that happens to a model and its optimizer; the model keeps it alive.

    Args:
        model: The module that training calls.
        optimizer: What steps.
        micro_batches: The parameters, and the noise of each micro-batch.
        witness: Observes the live trace.
        hosts: The modules around the parameters.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches, witness: TraceWitness, hosts: Hosts
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.micro_batches: MicroBatches = micro_batches
        self._witness, self._hosts = witness, hosts
        self._away: Excursion | None = None
        self._snapshots = Snapshots()
        self._running: list[Graph | None] = []  # forward passes that have not returned; None for those on clean weights
        self._was_used = False  # by a backward pass that has ended
        self._has_smoothed, self._warns = False, True  # since the last step; if one comes without
        self._model = weakref.ref(model)
        self._handles: list[RemovableHandle] = []
        self._handles = hang_up(self, model, optimizer, micro_batches)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.remove()  # the model is gone, but its weights may live on in the optimizer

    def remove(self) -> None:
        """Put the weights back and take the hooks away; a second call does nothing."""
        if self._handles:
            self.restore()
            for handle in self._handles:
                handle.remove()
            self._handles = []
            self.micro_batches.leave()

    def restore(self) -> None:
        """Put the weights back, whatever still needs them."""
        self.forget()
        self._running.clear()
        self._come_back()

    @property
    def model(self) -> nn.Module | None:
        """The model; None if it is gone, or :meth:`remove` was called."""
        return self._model() if self._handles else None

    # Of the model.

    def before_forward(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:  # noqa: ARG002
        """Displace the weights for training, unless an earlier pass still needs them where they are."""
        self._running.append(None)
        if not (module.training and torch.is_grad_enabled()) or is_measuring():
            self._pause()
            return
        graph = self.begin()  # first, so that nothing that ends meanwhile can put the weights back
        if self._away is None:
            self._go(module)
        if self._away is not None:
            self._go_on()
            self._running[-1] = graph

    def after_forward(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        """Follow the graph that ``output`` hangs at, or let go of it."""
        graph = self._running.pop() if self._running else None
        if graph is not None:
            self.follow(graph, output)
        elif None not in self._running:
            self._go_on()

    def before_look(self, *_: Any) -> None:
        """Put the weights back: they are about to be read or replaced."""
        self.restore()

    def before_copy(self, copies: dict[int, Any]) -> None:
        """Put the weights back, and mend those that were copied before this hook was."""
        self.restore()
        with torch.no_grad():
            for parameter in self.micro_batches.groups.parameters().values():
                if (copy := copies.get(id(parameter))) is not None:
                    local(copy).copy_(local(parameter))

    # Of its graphs.

    def leaves(self) -> Iterable[Tensor]:
        """Return the displaced parameters."""
        return () if self._away is None else self._away.parameters.values()

    def backward_begins(self) -> None:
        """See to it that the weights are where the forward pass saw them."""
        self._go_on()
        if self._away is not None:
            self._witness.before_backward(self._away)

    def backward_ended(self) -> None:
        """Note that the displacement was of use."""
        self._was_used = True
        if self._away is not None:
            self._witness.after_backward(self._away)

    def none_left(self) -> None:
        """Put the weights back."""
        self._come_back()

    # Of the optimizer.

    def before_step(
        self, optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the weights back, and have them put back after each evaluation of a closure, before it is stepped."""
        if torch._C._current_graph_task_id() != -1:
            raise ArgumentError(
                f"{type(optimizer).__name__} steps inside a backward pass (by a hook on parameters?), the rest of "
                "which still needs the displaced weights. Step after loss.backward()."
            )
        self._restore_used()
        self._witness.before_step()
        if not any(callable(value) for value in (*arguments[1:], *keywords.values())):
            return None
        return (
            (arguments[0], *map(self._restoring, arguments[1:])),
            {name: self._restoring(value) for name, value in keywords.items()},
        )

    def _restoring(self, value: Any) -> Any:
        def closure() -> Any:
            try:
                return value()
            finally:
                self._restore_used()

        return closure if callable(value) else value

    def _restore_used(self) -> None:
        self._was_used |= self._away is not None  # by a backward pass that was not seen
        self.restore()

    def after_step(self, optimizer: Optimizer, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:  # noqa: ARG002
        """Count the step."""
        if not self._has_smoothed and self._warns and self.micro_batches.next_moves() and _moves_weights(optimizer):
            self._warns = False
            warnings.warn(_NOTHING_SMOOTHED, stacklevel=2)
        self._has_smoothed = False
        self.micro_batches.groups.advance()
        self._witness.after_step()

    # The weights.

    def _go(self, module: nn.Module) -> None:
        self._has_smoothed = True
        moves, parameters = self.micro_batches.next_moves(), self.micro_batches.groups.parameters()
        if moves and parameters:
            tops = self._hosts.topmost(parameters.values())
            self._away = Excursion(parameters, moves, require_reach(module, parameters.values(), tops), self._snapshots)

    def _pause(self) -> None:
        if self._away is not None:
            self._away.pause()

    def _go_on(self) -> None:
        if self._away is not None:
            self._away.go_on()

    def _come_back(self) -> None:
        away, self._away = self._away, None
        if away is not None:
            away.end()
            if self._was_used:
                self._witness.after_point(away)
                self.micro_batches.advance()
        self._was_used = False


def _moves_weights(optimizer: Optimizer) -> bool:
    """Tell whether a step does anything: checkpointing makes one at learning rate 0 to fill an optimizer's state."""
    return any(bool(group.get("lr", 1.0) != 0) for group in optimizer.param_groups)
