"""flatmin in the Trainer of Lightning: weight noise at the price of the base optimizer, or a method of several points.

The second works inside Lightning's automatic optimization, on parts of it that are not public: it is tested with
Lightning 2.6.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flatmin.curvature.results import TraceEstimate
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.integrations.shared import method_within, missing, require_mini_batch, trace_entries
from flatmin.optim import Attachment, Perturbed, attach
from flatmin.optim.patterns import Radius
from flatmin.perturb import Probe

try:
    from lightning.pytorch import Callback, LightningModule, Trainer

    from flatmin.integrations.lightning_loop import probing, reroute, step_after_closure
except ModuleNotFoundError as _error:
    raise missing("lightning", "pip install 'flatmin[lightning]'") from _error


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
            reroute(pl_module)

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
            self._replace(method, "step", step_after_closure(method.step))
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        self._replace(loop, "_make_closure", functools.partial(probing, trainer, loop._make_closure))

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
