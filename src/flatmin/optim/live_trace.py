r"""The Hessian trace that training pays for anyway.

For noise with :math:`\mathbb E[uu^\top] = \sigma^2 I`, the inner product of displacement and gradient estimates the
trace: :math:`\mathbb E\langle\nabla f(w + u), u\rangle = \sigma^2 \operatorname{tr}\nabla^2 f(w) + O(\sigma^4)`. The
average over an antithetic pair is :math:`\langle g_+ - g_-, u\rangle / 2\sigma^2`, from which the gradient itself has
cancelled; a single point is unbiased too, with a standard error that says how much noisier it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flatmin.curvature.results import TraceEstimate
from flatmin.perturb import Draw
from flatmin.vectors import Total, accumulation_dtype, value_for


class Observation:
    """Collects, from one loop over probes, <g, u> / sigma² of each noisy evaluation by parameter position.

    Attributes:
        is_partial: Whether no trace can be told: an evaluation kept its gradients back, so that later ones will hold
            them too, or its noise had not the same variance in every coordinate of a parameter.
    """

    def __init__(self) -> None:
        self.is_partial = False
        self._sums: dict[int, Tensor] = {}
        self._count = 0

    def __call__(self, draw: Draw, alignments: Mapping[int, Tensor]) -> None:
        """Take the inner products <g, u> of one evaluation; none if its gradients were kept back."""
        self.is_partial |= not alignments or draw.relative_to != "absolute"
        weights = {i: scale**-2 for i in alignments if (scale := value_for(draw.scale, i))}
        if weights:
            parts = torch._foreach_mul([alignments[i] for i in weights], list(weights.values()))
            for i, part in zip(weights, parts, strict=True):
                self._sums[i] = self._sums[i] + part if i in self._sums else part
        self._count += 1

    def means(self) -> dict[int, Tensor]:
        """Return the average over the evaluations, by parameter position."""
        return {i: part / self._count for i, part in self._sums.items()}


class LiveTrace:
    """The latest samples of the Hessian trace, one row a step and one column a parameter group.

    Samples stay on the device of the parameters; nothing is synchronised until an estimate is read.

    Args:
        window: Number of steps that are kept.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._samples: Tensor | None = None
        self._count = 0
        self._pending: list[Tensor] | None = None
        self._is_partial = False

    def settle(
        self, seen: Observation, groups: Sequence[range], total: Total, loss_scale: Callable[[Tensor], Tensor]
    ) -> None:
        """Turn the evaluations of one loop over probes into one sample, which waits for :meth:`commit`.

        Micro-batches whose losses add up to the step's loss have samples that add up too.

        Args:
            seen: What the evaluations of the loop gave.
            groups: Parameter positions of each group.
            total: Adds partial sums over shards.
            loss_scale: What the loss was multiplied by, as a function that multiplies.
        """
        self._is_partial |= seen.is_partial
        means = seen.means()
        if not means or self._is_partial:
            return
        sums = [total({i: means[i] for i in group if i in means}) for group in groups]
        sums = [s / loss_scale(torch.ones((), dtype=torch.float32, device=s.device)) for s in sums]
        earlier = self._pending or [torch.zeros_like(s) for s in sums]
        self._pending = [a + b for a, b in zip(earlier, sums, strict=True)]

    def discard(self) -> None:
        """Forget the samples that have not been committed."""
        self._pending = None

    def forget(self) -> None:
        """Forget all that came before in this step: a new one begins."""
        self._pending, self._is_partial = None, False

    def commit(self) -> None:
        """Add what is pending as the sample of one optimizer step."""
        if self._pending is None or self._is_partial:
            self.forget()
            return
        device = self._pending[0].device
        row = torch.stack([s.to(device) for s in self._pending])
        if self._samples is None or self._samples.shape[1] != len(row):
            self._samples = torch.empty(self.window, len(row), dtype=accumulation_dtype(device), device=device)
            self._count = 0
        self._samples = self._samples.to(device)  # a checkpoint may have brought it from elsewhere
        self._samples[self._count % self.window] = row
        self._count += 1
        self.forget()

    def estimates(self) -> tuple[TraceEstimate, tuple[TraceEstimate, ...]] | None:
        """Return the estimate over all groups and that of each group, over the window; None if there is no sample."""
        if self._samples is None or self._count == 0:
            return None
        rows = self._samples[: min(self._count, self.window)].double().cpu()
        return _estimate(rows.sum(1)), tuple(_estimate(column) for column in rows.T)

    def state_dict(self) -> dict[str, Any]:
        """Return the samples, a few numbers a step."""
        return {"samples": None if self._samples is None else self._samples.clone(), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take up samples again; without any, or with a window of another length, start anew."""
        samples: Tensor | None = None if state is None else state["samples"]
        if state is not None and samples is not None and samples.shape[0] == self.window:
            self._samples, self._count = samples.clone(), int(state["count"])
        else:
            self._samples, self._count = None, 0
        self.forget()


def _estimate(samples: Tensor) -> TraceEstimate:
    n = len(samples)
    stderr = float(samples.std()) / math.sqrt(n) if n > 1 else math.nan
    return TraceEstimate(value=float(samples.mean()), stderr=stderr, num_matvecs=n, samples=samples)
