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

from flatmin.curvature.layerwise.groups import Groups as Groupings
from flatmin.curvature.layerwise.groups import grouped
from flatmin.curvature.layerwise.results import LayerwiseResult
from flatmin.curvature.layerwise.sampling import BlockTraces
from flatmin.curvature.layerwise.traces import layer_rows
from flatmin.curvature.layout import Layout
from flatmin.curvature.results import TraceEstimate
from flatmin.distributed import ShardedTotal
from flatmin.perturb import Draw
from flatmin.vectors import accumulation_dtype, value_for


class Observation:
    """Collects, from one loop over probes, <g, u> / sigma² of each noisy evaluation by parameter position.

    Attributes:
        is_partial: Whether no trace can be told: an evaluation kept its gradients back, so that later ones will hold
            them too, or its noise had not the same variance in every coordinate of a parameter.
    """

    def __init__(self) -> None:
        self.is_partial: bool = False
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
    """The latest samples of the Hessian trace, one row a step and one column a parameter.

    Samples stay on the device of the parameters; nothing is synchronised until an estimate is read.

    Args:
        window: Number of steps that are kept.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._samples: Tensor | None = None
        self._count = 0
        self._pending: Tensor | None = None
        self._is_partial = False

    def settle(
        self, seen: Observation, num_parameters: int, total: ShardedTotal, loss_scale: Callable[[Tensor], Tensor]
    ) -> None:
        """Turn the evaluations of one loop over probes into one sample, which waits for :meth:`commit`.

        Micro-batches whose losses add up to the step's loss have samples that add up too.

        Args:
            seen: What the evaluations of the loop gave.
            num_parameters: Number of all parameters, those that stand still included.
            total: Adds partial sums over shards.
            loss_scale: What the loss was multiplied by, as a function that multiplies.
        """
        self._is_partial |= seen.is_partial
        means = seen.means()
        if not means or self._is_partial:
            return
        means = total.each(means)
        zero = torch.zeros_like(next(iter(means.values())))
        row = torch.stack([means.get(i, zero).to(zero.device) for i in range(num_parameters)])
        row = row / loss_scale(torch.ones((), dtype=torch.float32, device=row.device))
        self._pending = row if self._pending is None else self._pending + row

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
        row = self._pending
        if self._samples is None or self._samples.shape[1] != len(row):
            self._samples = row.new_empty(self.window, len(row), dtype=accumulation_dtype(row.device))
            self._count = 0
        self._samples = self._samples.to(row.device)  # a checkpoint may have brought it from elsewhere
        self._samples[self._count % self.window] = row
        self._count += 1
        self.forget()

    def _rows(self) -> Tensor | None:
        """Return the samples on the CPU, which waits for them; None if there are none."""
        if self._samples is None or self._count == 0:
            return None
        return self._samples[: min(self._count, self.window)].double().cpu()

    def estimate(self) -> TraceEstimate | None:
        """Return the estimate over all parameters and the window."""
        rows = self._rows()
        return None if rows is None else _estimate(rows.sum(1))

    def group_estimates(self, groups: Sequence[range]) -> tuple[TraceEstimate, ...] | None:
        """Return the estimate of each group, given as the positions of its parameters."""
        rows = self._rows()
        if rows is None or rows.shape[1] != groups[-1].stop:
            return None  # samples of a checkpoint of another model, which the next step throws away
        return tuple(_estimate(rows[:, group.start : group.stop].sum(1)) for group in groups)

    def layers(self, parameters: Mapping[str, tuple[int, Tensor]], groups: Groupings) -> LayerwiseResult | None:
        """Return the estimate of each layer with its share; layers that no noise has reached are left out.

        Args:
            parameters: Name to position and parameter.
            groups: Which of them make a layer, see :func:`flatmin.layerwise`.
        """
        layers = grouped(Layout.of({name: parameter for name, (_, parameter) in parameters.items()}), groups)
        rows = self._rows()
        if rows is None or rows.shape[1] <= max(position for position, _ in parameters.values()):
            return None
        reached = rows.ne(0).any(0).tolist()
        moved = {layer: tuple(n for n in names if reached[parameters[n][0]]) for layer, names in layers.items()}
        layers = {layer: names for layer, names in moved.items() if names}
        if not layers:
            return None
        positions = [[parameters[name][0] for name in names] for names in layers.values()]
        samples = torch.stack([rows[:, columns].sum(1) for columns in positions], dim=1)
        sizes = torch.tensor([sum(parameters[name][1].numel() for name in names) for names in layers.values()])
        return LayerwiseResult(
            quantity="trace",
            layers=layer_rows(BlockTraces.of(samples), layers, sizes),
            whole=_estimate(samples.sum(1)),
            num_matvecs=len(samples),
            route="live",
        )

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
