"""Steps whose points are evaluated together, in one pass over stacked parameters."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatmin.distributed import ShardedTotal, is_sharded
from flatmin.errors import ArgumentError, ArgumentTypeError, ProbeError
from flatmin.optim import guards
from flatmin.optim.groups import Groups
from flatmin.optim.live_trace import LiveTrace, Observation
from flatmin.perturb import Flow, evaluate_stacked, plan

Call = Callable[..., Any]


class BatchedSteps:
    """The part of the shell that takes steps by ``torch.func.vmap``."""

    base: Optimizer
    _groups: Groups
    _trace: LiveTrace
    _finite: guards.FiniteCheck
    _common_randomness: bool
    _evaluations: int
    _has_evaluated: bool

    @abstractmethod
    def _start(self) -> Flow:
        """Start the flow of this step."""

    @abstractmethod
    def _begin(self) -> None:
        """Forget what no step has used."""

    @abstractmethod
    def _abandon(self) -> bool:
        """End an evaluation that is still open."""

    @abstractmethod
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""

    @abstractmethod
    def _is_observed(self, parameters: Mapping[int, Tensor]) -> bool:
        """Tell whether the evaluations of these parameters give samples of the live trace."""

    def step_batched(self, network: nn.Module, loss: Callable[[Callable[..., Any]], Tensor]) -> Tensor:
        """Take a step whose points are evaluated in one forward and backward pass, by ``torch.func.vmap``.

        It is the step of ``step(closure)``, up to the order in which numbers are added. It pays where a network is so
        small that calls cost more than arithmetic; memory and activations are those of all points together. The weights
        are not displaced, ``.grad`` ends as the direction, and buffers are not written.

        Args:
            network: The module with the parameters.
            loss: Takes what stands for ``network`` at a point and returns the loss there (0-dim), in operations that
                ``torch.func.vmap`` knows: no ``.item()``, no ``if`` on values.

        Returns:
            The average of the loss over the points, as from ``step(closure)``.

        Raises:
            ArgumentError: The network does not hold the parameters, is spread over ranks, or has batch norm in training
                mode.
            ArgumentTypeError: An argument of the wrong kind.
            ClosureError: The loss is no single number, or no parameter has a part in it.
            NonFiniteError: The loss or the gradient is NaN or infinite (see ``check_finite``).
            ProbeError: The method uses the gradient at one point to find the next (SAM and its relatives), or the loss
                cannot be batched.

        Example:
            >>> import torch, flatmin as fm
            >>> net, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
            >>> opt = fm.NSO(torch.optim.SGD(net.parameters(), lr=0.1), sigma=0.01)
            >>> loss = opt.step_batched(net, lambda net: net(x).square().mean())
        """
        at = AtPoints(network, loss, self._groups.parameters())
        return self.step(WholeStep(functools.partial(self._evaluate_batched, at)))

    def _evaluate_batched(self, loss: AtPoints) -> Tensor:
        self._abandon()
        self._groups.require_complete()
        parameters = self._groups.parameters()
        steps = plan(self._start())
        if steps is None:
            raise ProbeError(
                f"{type(self).__name__} uses the gradient at one point to find the next, so that its points cannot be "
                "evaluated in one pass. Evaluate them in turn: opt.step(closure) or opt.probes()."
            )
        self._begin()
        batch = evaluate_stacked(
            steps,
            parameters,
            loss,
            common_randomness=self._common_randomness,
            aligned=self._is_observed(parameters),
        )
        for i, parameter in parameters.items():
            parameter.grad = batch.direction.get(i)
        weights = batch.losses.new_tensor([weight for _, weight in steps])
        value = batch.losses @ weights
        guards.require_loss(value, parameters)
        self._finite.loss(value, self._groups)
        self._finite.gradients(self._groups)
        seen = Observation()
        for draw, alignments in batch.alignments:
            seen(draw, alignments)
        self._trace.settle(seen, self._groups.positions()[-1].stop, ShardedTotal(parameters), lambda scale: scale)
        self._evaluations += len(steps)
        self._has_evaluated = True
        return value


class WholeStep:
    """A closure of ``step()``, for which schedulers and hooks wait, that evaluates all points by itself.

    Args:
        evaluate: Leaves the direction in ``.grad`` and returns the loss.
    """

    def __init__(self, evaluate: Callable[[], Tensor]) -> None:
        self._evaluate = evaluate

    def __call__(self) -> Tensor:
        """Evaluate."""
        return self._evaluate()


class AtPoints:
    """The loss of a network as a function of the parameters that are trained.

    Args:
        network: The module that ``loss`` is a loss of.
        loss: Takes what is called in the place of ``network``.
        parameters: Position to parameter.

    Raises:
        ArgumentError: The network does not hold them, is spread over ranks, or writes to buffers as it runs.
        ArgumentTypeError: ``network`` is no module, or ``loss`` cannot be called.
    """

    def __init__(self, network: nn.Module, loss: Callable[[Call], Any], parameters: Mapping[int, Tensor]) -> None:
        if not isinstance(network, nn.Module):
            raise ArgumentTypeError(f"network is a {type(network).__name__}, but a torch.nn.Module is needed.")
        if not callable(loss):
            raise ArgumentTypeError(
                f"loss is a {type(loss).__name__}, but a function of the network is needed: "
                "lambda net: criterion(net(x), y)."
            )
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        missing = [i for i, parameter in parameters.items() if id(parameter) not in names]
        if missing:
            raise ArgumentError(
                f"The network holds {len(parameters) - len(missing)} of the {len(parameters)} parameters that the "
                f"optimizer trains (number {missing[0]} is not in it). Pass the module that contains all of them."
            )
        if type(network).__name__ == "DistributedDataParallel" or any(map(is_sharded, parameters.values())):
            raise ArgumentError(
                "The network is spread over ranks (DistributedDataParallel or FSDP2), whose hooks a batched pass does "
                "not call. Evaluate point by point: opt.step(closure) or opt.probes()."
            )
        _require_still_buffers(network)
        self._network, self._loss = network, loss
        self._names = {i: names[id(parameter)] for i, parameter in parameters.items()}

    def __call__(self, point: Mapping[int, Tensor]) -> Any:
        """Return the loss at ``point``: position to tensor."""
        tensors = {self._names[i]: tensor for i, tensor in point.items()}
        return self._loss(functools.partial(self._run, tensors))

    def _run(self, tensors: dict[str, Tensor], *arguments: Any, **keywords: Any) -> Any:
        return torch.func.functional_call(self._network, tensors, arguments, keywords)


def _require_still_buffers(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if module.training and getattr(module, "running_mean", None) is not None:
            raise ArgumentError(
                f"{name or 'The network'} is a {type(module).__name__} in training mode, whose running statistics "
                "cannot be written for several points at once. Put it into evaluation mode (module.eval()) where "
                "statistics are kept fixed, as in much fine-tuning; build it with track_running_stats=False, or take "
                "GroupNorm; or evaluate point by point: opt.step(closure)."
            )
