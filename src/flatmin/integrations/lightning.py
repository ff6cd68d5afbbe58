"""flatmin in the Trainer of Lightning: weight noise at the price of the base optimizer, or a method of several points.

The second works inside Lightning's automatic optimization, on parts of it that are not public: it is tested with
Lightning 2.6.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from flatmin.curvature.results import TraceEstimate
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.integrations.shared import loss_of_step, method_within, missing, require_mini_batch, trace_entries
from flatmin.optim import Attachment, Perturbed, attach
from flatmin.optim.patterns import Radius
from flatmin.perturb import Probe

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
except ModuleNotFoundError as error:
    raise missing("lightning", "pip install 'lightning>=2.6.6'") from error


class _TraceCallback(Callback):
    """Logs the live trace where the loggers are about to be told; reading it waits for the device."""

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The live trace of this run, or of the last."""
        raise NotImplementedError

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log ``hessian_trace`` and ``hessian_trace_stderr`` every ``log_every_n_steps`` steps."""
        every = getattr(trainer, "log_every_n_steps", 0)
        if every and trainer.global_step % every == 0 and not trainer.fit_loop._should_accumulate():
            pl_module.log_dict(trace_entries(self.trace_estimate), on_step=True, on_epoch=False, batch_size=1)


class AttachCallback(_TraceCallback):
    """Two-point weight noise in a run of Lightning: :func:`flatmin.attach` from its beginning to its end.

    The two points of a pair fall on successive batches. Whatever ``training_step`` computes under automatic
    optimization is displaced, with accumulation, mixed precision and clipping. The counters of the noise are in the
    optimizer's state, the samples of the live trace in the callback's: a run that is resumed is the uninterrupted one.

    Args:
        sigma: Standard deviation of the noise on each weight, see :func:`flatmin.attach`.
        module: Name of the part of the module that ``training_step`` calls, as ``get_submodule`` takes it: needed under
            manual optimization, where one ``training_step`` may be many micro-batches. Empty: all of it.
        **options: Further options of :func:`flatmin.attach`; its ``scaler`` is that of the precision plugin.

    Example:
        >>> AttachCallback(sigma=0.01).trace_estimate is None  # Trainer(callbacks=[AttachCallback(sigma=0.01)])
        True
    """

    def __init__(self, sigma: Radius, *, module: str = "", **options: Any) -> None:
        inspect.signature(attach).bind(None, None, sigma, scaler=None, **options)  # a name that it has not, now
        self._sigma, self._module, self._options = sigma, module, options
        self._state: Mapping[str, Any] | None = None
        self._rerouted: LightningModule | None = None
        self.handle: Attachment | None = None

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The live trace of this run, or of the last; see :attr:`flatmin.optim.Attachment.trace_estimate`."""
        return None if self.handle is None else self.handle.trace_estimate

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach: the model is wrapped and the checkpoint loaded by now."""
        if len(trainer.optimizers) != 1:
            raise ArgumentError(
                f"configure_optimizers returned {len(trainer.optimizers)} optimizers, and AttachCallback goes with "
                "one. Call flatmin.attach(network, optimizer, sigma=...) for each in configure_optimizers."
            )
        if not self._module and not pl_module.automatic_optimization:
            raise ArgumentError(
                "AttachCallback is not told which module training_step calls, and under manual optimization one "
                "training_step may hold several forward passes. Name it: AttachCallback(sigma=..., module='network')."
            )
        called = pl_module.get_submodule(self._module)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.handle = attach(called, trainer.optimizers[0], self._sigma, scaler=scaler, **self._options)
        if self._state is not None:
            self.handle.load_state_dict(self._state)
            self._state = None
        if called is pl_module:
            self._rerouted = pl_module
            _reroute(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Take the hooks away; the weights are clean."""
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Take the hooks away."""
        self._remove()

    def _remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        if self._rerouted is not None:
            del self._rerouted.__dict__["training_step"]
            self._rerouted = None

    def state_dict(self) -> dict[str, Any]:
        """Return the samples of the live trace."""
        return {} if self.handle is None else self.handle.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what :meth:`state_dict` returned until there is something to attach to."""
        self._state = state_dict or None


class ProbesCallback(_TraceCallback):
    """Trains with the method that ``configure_optimizers`` returned, all its points on the same batch.

    Under automatic optimization Lightning's closure runs once for each point: gradients are cleared before the first,
    and clipping, unscaling and the step come after the last, on the method's direction. What ``training_step`` logs is
    that of the first point. Under accumulation a noise method takes the step of the big batch; the SAM family climbs
    the gradient of each micro-batch by itself (m-sharpness). Under manual optimization :func:`probes` hands out the
    points, and ``self.optimizers().step()`` steps.

    Example:
        >>> ProbesCallback().trace_estimate is None  # Trainer(callbacks=[ProbesCallback()])
        True
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._method: Perturbed | None = None

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The live trace of this run, or of the last."""
        return None if self._method is None else self._method.trace_estimate

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Take the place of Lightning's closure and of the step that it is given to."""
        self._put_back()
        methods = [method for optimizer in trainer.optimizers if (method := method_within(optimizer)) is not None]
        if not methods:
            kinds = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "nothing"
            raise ArgumentError(
                f"configure_optimizers returned no method of flatmin ({kinds}), and ProbesCallback runs one. Return "
                "one: fm.NSO(torch.optim.AdamW(...), sigma=0.01); or take AttachCallback(sigma=0.01), which needs none."
            )
        self._method = methods[0]
        for method in methods:
            self._replace(method, "step", _step_after_closure(method.step))
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        self._replace(loop, "_make_closure", functools.partial(_probing, trainer, loop._make_closure))

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        before = vars(owner).get(name)
        setattr(owner, name, value)
        self._undo.append(lambda: delattr(owner, name) if before is None else setattr(owner, name, before))

    def _put_back(self) -> None:
        while self._undo:
            self._undo.pop()()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Give Lightning its own back."""
        self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Give Lightning its own back."""
        self._put_back()


def probes(module: LightningModule, optimizer: Any = None, *, loss_scale: float = 1.0) -> Iterator[Probe]:
    """Yield the points of one step under manual optimization; the trainer needs a :class:`ProbesCallback`.

    Inside each ``with probe:`` run forward and ``self.manual_backward``; then ``self.optimizers().step()`` and
    ``zero_grad()``. Micro-batches go inside each probe.

    Args:
        module: The module whose ``training_step`` this is.
        optimizer: Which of ``module.optimizers()``, if there are several.
        loss_scale: What the loss is multiplied by, see :meth:`flatmin.optim.Perturbed.probes`.

    Raises:
        ArgumentError: The trainer has no :class:`ProbesCallback`.
        ArgumentTypeError: There is no method of flatmin in the optimizer.
    """
    trainer = module.trainer
    if not any(isinstance(callback, ProbesCallback) for callback in getattr(trainer, "callbacks", ())):
        raise ArgumentError(
            "The trainer has no ProbesCallback. Lightning hands every step a closure that computes nothing, which a "
            "method would evaluate at each of its points. Pass Trainer(callbacks=[ProbesCallback()])."
        )
    method = method_within(module.optimizers() if optimizer is None else optimizer)
    if method is None:
        raise ArgumentTypeError(
            "There is no method of flatmin in the optimizer. Return one from configure_optimizers, "
            "fm.NSO(torch.optim.AdamW(...), sigma=0.01); of several optimizers, name one: probes(self, optimizer)."
        )
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    for probe in method.probes(scaler=scaler, loss_scale=loss_scale):
        yield require_mini_batch(probe, method)


def _step_after_closure(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``step`` that calls its closure once, for all the points, and then steps with what is in ``.grad``."""

    @functools.wraps(step)
    def stepping(closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else closure()
        step()
        return loss

    return stepping


def _probing(trainer: Trainer, make: Callable[..., Closure], *args: Any, **kwargs: Any) -> Closure:
    """Return Lightning's closure for one micro-batch, running at all the points of the method."""
    closure = make(*args, **kwargs)
    method = method_within(trainer.optimizers[0])
    if method is None or closure._backward_fn is None:
        return closure
    return _ProbingClosure(trainer, method, closure)


class _ProbingClosure(Closure):
    def __init__(self, trainer: Trainer, method: Perturbed, plain: Closure) -> None:
        super().__init__(plain._step_fn, plain._backward_fn, plain._zero_grad_fn)
        self._trainer, self._method = trainer, method

    @torch.enable_grad()
    def closure(self, *args: Any, **kwargs: Any) -> ClosureResult:  # noqa: ARG002
        if self._zero_grad_fn is not None:
            self._zero_grad_fn()
        trainer, method = self._trainer, self._method
        results, seen = list[ClosureResult](), list[Probe]()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for probe in method.probes(scaler=scaler, loss_scale=1 / trainer.accumulate_grad_batches):
            self._require_averaging(probe)
            with require_mini_batch(probe, method), _unlogged(trainer, probe.number > 0):
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
def _unlogged(trainer: Trainer, hides: bool) -> Iterator[None]:
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


def _reroute(module: LightningModule) -> None:
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
