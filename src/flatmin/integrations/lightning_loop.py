"""What takes the place of parts of Lightning's loop: its closure, its step, and its way to ``training_step``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torch import nn

from flatmin.errors import ArgumentError
from flatmin.integrations.shared import loss_of_step, method_within, require_mini_batch
from flatmin.optim import Perturbed
from flatmin.perturb import Probe


def step_after_closure(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``step`` that calls its closure once, for all the points, and then steps with what is in ``.grad``."""

    @functools.wraps(step)
    def stepping(closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        step()
        return loss

    return stepping


def probing(trainer: Trainer, make: Callable[..., Closure], *args: Any, **kwargs: Any) -> Closure:
    """Return Lightning's closure for one micro-batch, running at all the points of the method."""
    closure = make(*args, **kwargs)
    method = method_within(trainer.optimizers[0])
    if method is None or closure._backward_fn is None:
        return closure
    return ProbingClosure(trainer, method, closure)


class ProbingClosure(Closure):
    """Lightning's closure at each point of a method: the gradients are cleared once, before the first.

    Args:
        trainer: The trainer.
        method: The method.
        plain: The closure of one micro-batch.
    """

    def __init__(self, trainer: Trainer, method: Perturbed, plain: Closure) -> None:
        super().__init__(plain._step_fn, plain._backward_fn, plain._zero_grad_fn)
        self._trainer, self._method = trainer, method

    @torch.enable_grad()
    def closure(self, *args: Any, **kwargs: Any) -> ClosureResult:  # noqa: ARG002
        """Run forward and backward at each point."""
        if self._zero_grad_fn is not None:
            self._zero_grad_fn()
        trainer, method = self._trainer, self._method
        results, seen = list[ClosureResult](), list[Probe]()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for probe in method.probes(scaler=scaler, loss_scale=1 / trainer.accumulate_grad_batches):
            self._require_averaging(probe)
            with require_mini_batch(probe, method), unlogged(trainer, probe.number > 0):
                results.append(self._at_this_point())
            seen.append(probe)
        losses = [result.loss for result in results if result.loss is not None]
        return ClosureResult(loss_of_step(losses, seen), extra=results[0].extra)

    def _at_this_point(self) -> ClosureResult:
        result = self._step_fn()
        if result.closure_loss is None or self._backward_fn is None:
            raise ArgumentError(
                "training_step returned None, which skips a batch, but the points of a method all need its loss. "
                "Return a loss of zero: (output * 0).sum()."
            )
        self._backward_fn(result.closure_loss)
        return result

    def _require_averaging(self, probe: Probe) -> None:
        if probe.weight is None and self._trainer.world_size > 1 and self._trainer.accumulate_grad_batches > 1:
            raise ArgumentError(
                f"{type(self._method).__name__} looks into gradients, but with accumulate_grad_batches="
                f"{self._trainer.accumulate_grad_batches} Lightning leaves those of the first micro-batches on each of "
                f"{self._trainer.world_size} ranks, so that the ranks' weights would part. Set accumulate_grad_batches="
                "1, take a noise method (fm.NSO), or manual optimization."
            )


@contextmanager
def unlogged(trainer: Trainer, hides: bool) -> Iterator[None]:
    """Throw away what is logged in here, if ``hides``: it has been logged at the first point."""
    loop = trainer.fit_loop.epoch_loop
    kept = loop._results
    if hides:
        loop._results = _ResultCollection(training=True)
        loop._results.batch, loop._results.batch_size = kept.batch, kept.batch_size
    try:
        yield
    finally:
        loop._results = kept


def reroute(module: LightningModule) -> None:
    """Have calls of ``training_step`` go through the module itself, whose hooks Lightning goes past otherwise."""
    step = module.training_step

    @functools.wraps(step)
    def training_step(*args: Any, **kwargs: Any) -> Any:
        own = vars(module).get("forward")

        def forward(*args: Any, **kwargs: Any) -> Any:
            put_back()
            return step(*args, **kwargs)

        def put_back() -> None:
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own

        vars(module)["forward"] = forward
        try:
            return nn.Module.__call__(module, *args, **kwargs)
        finally:
            put_back()

    vars(module)["training_step"] = training_step
