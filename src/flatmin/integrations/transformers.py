"""flatmin in the Trainer of transformers: a callback at the price of the base optimizer, a mixin for every method."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatmin.curvature.results import TraceEstimate
from flatmin.errors import ArgumentError
from flatmin.integrations.arguments import FlatMinimaArguments
from flatmin.integrations.shared import loss_of_step, method_within, missing, require_mini_batch, trace_entries
from flatmin.optim import Attachment, attach
from flatmin.optim.patterns import Radius
from flatmin.perturb import Hosts

try:
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as _error:
    raise missing("transformers", "pip install 'flatmin[trainer]'") from _error

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")


class AttachCallback(TrainerCallback):
    """Two-point weight noise in a Trainer's run: :func:`flatmin.attach` from its beginning to its end.

    The two points of a pair fall on successive micro-batches, so that a step costs what the base optimizer's does. The
    counters of the noise are in the optimizer's state: a run resumed from a checkpoint is the uninterrupted one.

    What the Trainer logs gets ``hessian_trace`` and ``hessian_trace_stderr``, the live trace. Among ``callbacks=[...]``
    it comes after those that report to trackers, which are told earlier and miss it: :meth:`join` puts it before them.

    Args:
        sigma: Standard deviation of the noise on each weight, see :func:`flatmin.attach`.
        **options: Further options of :func:`flatmin.attach`; its ``scaler`` is the Trainer's.

    Example:
        >>> callback = AttachCallback(sigma=0.01)  # Trainer(..., callbacks=[callback])
        >>> callback.trace_estimate is None
        True
    """

    def __init__(self, sigma: Radius, **options: Any) -> None:
        inspect.signature(attach).bind(None, None, sigma, scaler=None, **options)  # a name that it has not, now
        self._sigma, self._options = sigma, options
        self.handle: Attachment | None = None

    def join(self, trainer: Trainer) -> Self:
        """Add this callback to ``trainer``, before those that report: trackers then get the live trace too."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The live trace of this run, or of the last; see :attr:`flatmin.optim.Attachment.trace_estimate`."""
        return None if self.handle is None else self.handle.trace_estimate

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Attach: the model is wrapped and the checkpoint loaded by now."""
        self._remove()  # of a run that an exception ended
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        self.handle = attach(_called(model), optimizer, self._sigma, scaler=scaler, **self._options)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Add the live trace to what is logged."""
        logs: dict[str, Any] = kwargs.get("logs") or {}
        if "loss" in logs:
            entries = trace_entries(self.trace_estimate)
            logs.update(entries)
            state.log_history[-1].update(entries)  # a copy, made before callbacks are told

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the hooks away; the weights are clean."""
        self._remove()

    def _remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()


class FlatMinimaMixin(_Base):
    """Any Trainer, training with a method of several points: ``class FlatTrainer(FlatMinimaMixin, SomeTrainer)``.

    All micro-batches of a step are evaluated at each point of the method, so that a step with accumulation is that of
    the big batch, for the SAM family too. The gradients are then the method's: clipping, loss scaling, averaging over
    ranks and the step come after, as in any run. Evaluations and checkpoints see the weights themselves, and the state
    of the method is in the optimizer's.

    The method is either named by ``flat_minima``, around the optimizer that the Trainer makes, or is the optimizer
    itself: ``optimizers=(fm.NSO(...), None)``. Without either the run is the Trainer's own.

    What the Trainer logs gets ``hessian_trace`` and ``hessian_trace_stderr`` where the method reports a live trace. The
    logged loss of a noise method is the average over its points. ``total_flos`` counts one pass a micro-batch.

    Args:
        *args: For the Trainer.
        flat_minima: The method and its settings.
        **kwargs: For the Trainer.

    Raises:
        ArgumentError: DeepSpeed is asked for, or a method is given twice.
    """

    def __init__(self, *args: Any, flat_minima: FlatMinimaArguments | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flat_minima = flat_minima
        self._waiting: list[Mapping[str, Any]] = []
        wants = flat_minima is not None or method_within(self.optimizer) is not None
        if wants and self.is_deepspeed_enabled:
            raise ArgumentError(
                "The Trainer is given a DeepSpeed configuration (args.deepspeed). Its engine steps inside backward() "
                "and keeps the weights that are trained, so no method can displace them. Leave it out, and use "
                "DistributedDataParallel (torchrun) or FSDP2 (--fsdp with fsdp_version 2)."
            )
        if flat_minima is not None and method_within(self.optimizer) is not None:
            raise ArgumentError(
                f"The Trainer is given two methods: flat_minima names {flat_minima.method!r}, and its optimizer is a "
                f"{type(method_within(self.optimizer)).__name__}. Leave out one of them."
            )
        if flat_minima is not None and flat_minima.attaches:
            AttachCallback(**flat_minima.given()).join(self)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Make the Trainer's optimizer, and put the method around it."""
        self._waiting = []  # of a run that ended within a step
        optimizer = super().create_optimizer(model)
        if self.flat_minima is not None and not self.flat_minima.attaches and method_within(optimizer) is None:
            optimizer = self.flat_minima.around(optimizer)
            self.optimizer: Optimizer = optimizer
        return optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Keep the micro-batch, and evaluate all of a step at each point of the method when its last one has come."""
        method = method_within(self.optimizer)
        if method is None:
            return super().training_step(model, inputs, num_items_in_batch)
        self._waiting.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)  # its loss is in that of the last one
        micro_batches, self._waiting = self._waiting, []
        losses, probes = list[Tensor](), []
        for probe in method.probes(scaler=self.accelerator.scaler):
            with require_mini_batch(probe, method):
                losses.append(self._accumulate(model, micro_batches, num_items_in_batch))
            probes.append(probe)
        return loss_of_step(losses, probes)

    def _accumulate(self, model: nn.Module, micro_batches: list[Any], num_items: Tensor | int | None) -> Tensor:
        """Run forward and backward at all micro-batches of a step; the last alone averages over ranks."""
        total = torch.zeros((), device=self.args.device)
        for number, inputs in enumerate(micro_batches):
            is_last = number + 1 == len(micro_batches)
            with nullcontext() if is_last else self._on_this_rank(model):
                # A copy: some losses take the labels out.
                total = total + super().training_step(model, dict(inputs), num_items)
        return total

    def _on_this_rank(self, model: nn.Module) -> AbstractContextManager[Any]:
        averages_each = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        # A model that was sharded when it was loaded is unknown to Accelerate: its gradients are averaged each time.
        if averages_each or getattr(self, "is_distributed_loading_by_transformers", False):
            return nullcontext()
        return self.accelerator.no_sync(model)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the live trace where there is one."""
        method = method_within(self.optimizer)
        if method is not None and "loss" in logs:
            logs.update(trace_entries(method.trace_estimate))
        super().log(logs, *args, **kwargs)


class FlatMinimaTrainer(FlatMinimaMixin, Trainer):
    """The Trainer of transformers with :class:`FlatMinimaMixin`."""


def _called(model: nn.Module) -> nn.Module:
    """Return the module that the Trainer calls: ``model``, in what it was compiled or replicated into."""
    for top in Hosts().topmost(model.parameters()):
        inner = top
        while inner is not model and type(inner).__name__ in _WRAPPERS:
            (inner,) = inner.children()
        if inner is model:
            return top
    return model
