"""flatmin in loops over Accelerate: the points of a method, or weight noise by hooks, told of what Accelerate does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from flatmin import optim
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.integrations.shared import method_within, missing, require_mini_batch
from flatmin.optim import Attachment
from flatmin.optim.patterns import Radius
from flatmin.perturb import Probe

try:
    from accelerate import Accelerator  # pyright: ignore[reportMissingImports]  (optional)
except ModuleNotFoundError as _error:
    raise missing("accelerate", "pip install 'flatmin[trainer]'") from _error


def probes(accelerator: Accelerator, optimizer: Optimizer) -> Iterator[Probe]:
    """Yield the points of one step, or of one micro-batch under ``accelerator.accumulate``.

    The method goes to ``prepare`` as any optimizer does, and comes back in a wrapper; this looks into it, and tells the
    method of the ``GradScaler`` and of what ``accelerator.backward`` divides losses by. The step stays
    ``optimizer.step()``, without a closure, which Accelerate would drop for all micro-batches but the last.

    Under accumulation a noise method takes the step of the big batch. The SAM family climbs the gradient of each
    micro-batch by itself (m-sharpness); for that of the big batch put the micro-batches inside each probe, with an
    Accelerator that accumulates nothing.

    Args:
        accelerator: What prepared the optimizer.
        optimizer: A method of flatmin, as ``prepare`` returned it.

    Raises:
        ArgumentError: The method would be fed gradients that are not averaged over ranks.
        ArgumentTypeError: There is no method of flatmin in the optimizer.

    Example:
        >>> import torch, flatmin as fm
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.01)
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> with accelerator.accumulate(model):
        ...     for probe in probes(accelerator, optimizer):
        ...         with probe:
        ...             accelerator.backward(model(torch.ones(4, 2)).square().mean())
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """
    method = method_within(optimizer)
    if method is None:
        raise ArgumentTypeError(
            f"optimizer is a {type(optimizer).__name__} without a method of flatmin in it. Put one around the "
            "optimizer before accelerator.prepare: fm.NSO(torch.optim.AdamW(...), sigma=0.01)."
        )
    scale = 1 / accelerator.gradient_accumulation_steps
    for probe in method.probes(scaler=accelerator.scaler, loss_scale=scale):
        if probe.weight is None:
            _require_averaging(accelerator, type(method).__name__)
        yield require_mini_batch(probe, method)


def attach(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, sigma: Radius, **options: Any
) -> Attachment:
    """Attach weight noise to what ``prepare`` returned, and save its live trace with ``accelerator.save_state``.

    :func:`flatmin.attach` with the Accelerator's ``GradScaler``, in loops that stay as they are. The counters of the
    noise are in the optimizer's state, the samples of the live trace in a custom checkpoint of the Accelerator.

    Args:
        accelerator: What prepared model and optimizer.
        model: The prepared model, which the loop calls.
        optimizer: The prepared optimizer.
        sigma: Standard deviation of the noise on each weight, see :func:`flatmin.attach`.
        **options: Further options of :func:`flatmin.attach`.

    Returns:
        The handle; ``remove()`` ends it, as does leaving it as a context.

    Example:
        >>> import torch
        >>> accelerator = Accelerator(cpu=True)
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> with attach(accelerator, model, optimizer, sigma=0.01) as handle:
        ...     accelerator.backward(model(torch.ones(4, 2)).square().mean())
        ...     optimizer.step()
        >>> handle.trace_estimate.num_matvecs
        1
    """
    handle = optim.attach(model, optimizer, sigma, scaler=accelerator.scaler, **options)
    accelerator.register_for_checkpointing(handle)
    return handle


def _require_averaging(accelerator: Accelerator, name: str) -> None:
    """Raise where gradients stay on this rank, which a method that looks into them must not start from."""
    averages_each = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
    if accelerator.num_processes > 1 and not accelerator.sync_gradients and not averages_each:
        raise ArgumentError(
            f"{name} looks into gradients, but accelerator.accumulate leaves those of this micro-batch on each of "
            f"{accelerator.num_processes} ranks, so that the ranks' weights would part. Pass Accelerator("
            "gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=..., sync_each_batch=True)), or put the "
            "micro-batches inside each probe."
        )
