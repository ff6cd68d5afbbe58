"""What :func:`flatmin.attach` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import nn
from torch.optim import Optimizer

from flatmin.curvature.results import TraceEstimate
from flatmin.optim.attachment.micro_batches import MicroBatches
from flatmin.optim.attachment.smoother import Smoother
from flatmin.optim.attachment.trace import TraceWitness
from flatmin.optim.groups import Groups
from flatmin.optim.live_trace import LiveTrace
from flatmin.optim.noise_to_signal import NoiseToSignal
from flatmin.optim.readings import Readings


class Attachment(Readings):
    """The handle of weight noise in a model's training forward passes. As a context manager it ends with the block.

    It need not be kept: the noise lasts as long as the model.
    """

    def __init__(self, smoother: Smoother, micro_batches: MicroBatches, witness: TraceWitness) -> None:
        self._smoother, self._micro_batches, self._witness = smoother, micro_batches, witness

    def __repr__(self) -> str:
        """Show the noise and how far the run has come."""
        return f"Attachment({self._micro_batches})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def model(self) -> nn.Module | None:
        """The attached model; None if it is gone, or :meth:`remove` was called."""
        return self._smoother.model

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that steps, within whatever wraps it; sigma, counters and seed are entries of its groups."""
        return self._smoother.optimizer

    def remove(self) -> None:
        """Put the weights back and take the hooks away; a second call does nothing.

        The counters stay in the parameter groups, so that what is attached later goes on with fresh noise.
        """
        self._smoother.remove()

    def restore(self) -> None:
        """Put the weights back now.

        They are clean by themselves when the backward pass is over, in evaluations, and for ``state_dict()`` and
        ``step()``. This is for code that reads parameters between a forward pass and its backward pass, which cannot
        be run any more.
        """
        self._smoother.restore()

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The Hessian trace of the smoothed training loss with its standard error, from the gradients of training.

        A sample is a sum over the micro-batches of a step, whose losses are taken to add up to that of the step. None
        before the first step, without noise, for parameters of 16 bits, for ``ranks`` other than ``"shared"``, and for
        steps that accumulate without synchronising ranks or that a ``GradScaler`` makes which was not named.
        """
        return self._witness.trace_estimate

    def _observed(self) -> tuple[LiveTrace, Groups, NoiseToSignal | None]:
        return self._witness.trace, self._micro_batches.groups, self._witness.compared

    def compare_gradients(self) -> None:
        """Have the gradients of the micro-batches of the next step compared, for :attr:`noise_to_signal`.

        That step takes two norms more for each micro-batch, and a copy of the gradients between them. It does nothing
        where several processes train.
        """
        self._witness.compare_gradients()

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizer's state does not carry: the samples of the trace, and schedules with a state."""
        return {"trace": self._witness.trace.state_dict(), "schedules": self._micro_batches.schedules_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._witness.trace.load_state_dict(state["trace"])
        self._micro_batches.load_schedules_state(state["schedules"])
