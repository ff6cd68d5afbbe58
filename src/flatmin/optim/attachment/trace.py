"""The live Hessian trace from gradients that a loop of the user's own computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flatmin.curvature.results import TraceEstimate
from flatmin.distributed import GradientAveraging, ShardedTotal, is_parallel, is_sharded
from flatmin.optim.attachment.excursion import Excursion
from flatmin.optim.attachment.micro_batches import MicroBatches
from flatmin.optim.callers import is_called_by_scaler
from flatmin.optim.live_trace import LiveTrace, Observation
from flatmin.optim.noise_to_signal import NoiseToSignal
from flatmin.perturb import Hosts
from flatmin.perturb.gradients import current
from flatmin.vectors import has_16_bits


class TraceWitness:
    """Takes from each backward pass what it added to <g, u>, and makes a sample of what a step has brought together.

    It is silent where gradients are not final when the pass ends (``no_sync``), where ranks displace differently, for
    parameters of 16 bits, and where a ``GradScaler`` steps that it was not told of.

    Args:
        window: Number of steps to look back; 0 turns it off.
        micro_batches: The parameters and who draws their noise.
        scaler: What scales the loss, if anything does.
        hosts: The modules around the parameters.
    """

    def __init__(
        self, window: int, micro_batches: MicroBatches, scaler: torch.amp.GradScaler | None, hosts: Hosts
    ) -> None:
        self.trace: LiveTrace = LiveTrace(window)
        self._micro_batches, self._scaler, self._hosts = micro_batches, scaler, hosts
        self._before: Mapping[int, Tensor] | None = None
        self._comparison: NoiseToSignal | None = None  # of the step that is being made
        self._has_passed = False  # a backward pass that was seen, since the last point
        self.compared: NoiseToSignal | None = None

    def compare_gradients(self) -> None:
        """Compare the gradients of the micro-batches of the next step."""
        self._comparison = None if is_parallel() else NoiseToSignal()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, which a schedule that looks at the run may ask for."""
        return self._micro_batches.optimizer.param_groups

    @property
    def trace_estimate(self) -> TraceEstimate | None:
        """The estimate over all groups."""
        return self.trace.estimate()

    def before_backward(self, excursion: Excursion) -> None:
        """Note what ``.grad`` holds already."""
        if self._comparison is not None:
            present = current(excursion.parameters)
            if not present or self._comparison.points == 0:  # what came before was thrown away
                self._comparison.begin(present, 1.0)
        self._before = None
        parameters = excursion.parameters.values()
        if not self.trace.window or self._micro_batches.ranks != "shared" or has_16_bits(parameters):
            return
        self._before = excursion.alignments()
        if not self._before:  # what came before was thrown away, or is kept back by FSDP2
            self.trace.discard() if any(is_sharded(p) for p in parameters) else self.trace.forget()

    def after_backward(self, excursion: Excursion) -> None:
        """Take what the pass has added to it."""
        self._has_passed = True
        if self._before is None:
            return
        before, self._before = self._before, None
        after = {} if self._is_kept_back(excursion) else excursion.alignments()
        seen, scale = Observation(), self._scaler.scale if self._scaler else _identity
        seen(excursion.point, {i: a - before[i] if i in before else a for i, a in after.items()})
        number = self._micro_batches.groups.positions()[-1].stop
        self.trace.settle(seen, number, ShardedTotal(excursion.parameters), scale)

    def after_point(self, excursion: Excursion) -> None:
        """Take what all passes of a micro-batch together have added, if gradients are compared."""
        if self._comparison is not None and self._has_passed:
            self._comparison.add(current(excursion.parameters), 1.0)
        self._has_passed = False

    def _is_kept_back(self, excursion: Excursion) -> bool:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return False
        return GradientAveraging(self._hosts.modules(excursion.parameters.values())).is_kept_back

    def before_step(self) -> None:
        """Forget the sample if the loss was scaled by nobody knows what."""
        if self.trace.window and self._scaler is None and is_called_by_scaler():
            self.trace.forget()

    def after_step(self) -> None:
        """Take the sample, and what was compared if anything was."""
        self.trace.commit()
        if self._comparison is not None and self._comparison.points:
            self._comparison.end()
            self.compared, self._comparison = self._comparison, None


def _identity(tensor: Tensor) -> Tensor:
    return tensor
