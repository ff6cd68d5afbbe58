"""What a method of flatmin, or an attachment, knows of the curvature at the moment: one value for all that log it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatmin.curvature import LayerwiseResult, TraceEstimate
from flatmin.curvature.layerwise.groups import Groups

SHARE = "hessian_trace_share"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Live curvature at one step; None for what the method does not know (SAM draws no noise, so has no trace).

    Attributes:
        trace: The Hessian trace of the training loss over the latest steps.
        layers: The same by layer, with shares of the whole.
        noise_to_signal: See :attr:`flatmin.optim.Perturbed.noise_to_signal`.
        gradient_evaluations: Points whose gradients were taken.
        forward_passes: Training forward passes of the model, where they are counted.

    Example:
        >>> import torch, flatmin as fm
        >>> model = torch.nn.Linear(2, 1)
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.01)
        >>> Reading.of(opt).metrics()
        {'gradient_evaluations': 0.0}
    """

    trace: TraceEstimate | None = None
    layers: LayerwiseResult | None = None
    noise_to_signal: float | None = None
    gradient_evaluations: int | None = None
    forward_passes: int | None = None

    @classmethod
    def of(cls, source: Any, *, groups: Groups | None = None, forward_passes: int | None = None) -> Reading:
        """Read what ``source`` has; this waits for the device.

        Args:
            source: A method, an attachment, or any optimizer (of which there is nothing to tell).
            groups: Which parameters make a layer, see :func:`flatmin.layerwise`; None leaves layers out.
            forward_passes: Their number, counted by the caller.
        """
        by_layer = getattr(source, "layer_trace_estimates", None)
        return cls(
            trace=getattr(source, "trace_estimate", None),
            layers=None if by_layer is None or groups is None else by_layer(groups),
            noise_to_signal=getattr(source, "noise_to_signal", None),
            gradient_evaluations=getattr(source, "gradient_evaluations", None),
            forward_passes=forward_passes,
        )

    def metrics(self) -> dict[str, float]:
        """Return everything as numbers by name, as trackers take them; what is not known is left out.

        ``hessian_trace``, ``hessian_trace_stderr``, ``noise_to_signal``, ``gradient_evaluations``, ``forward_passes``,
        and for each layer ``hessian_trace_share/NAME`` and ``hessian_trace_share_stderr/NAME``.
        """
        found: dict[str, float | None] = {
            "hessian_trace": None if self.trace is None else self.trace.value,
            "hessian_trace_stderr": None if self.trace is None else self.trace.stderr,
            "noise_to_signal": self.noise_to_signal,
            "gradient_evaluations": self.gradient_evaluations,
            "forward_passes": self.forward_passes,
        }
        for layer in self.layers or ():
            found[f"{SHARE}/{layer.name}"] = layer.share
            found[f"{SHARE}_stderr/{layer.name}"] = layer.share_stderr
        return {name: float(v) for name, v in found.items() if v is not None and not _is_unknown(name, v)}

    @property
    def shares(self) -> Mapping[str, float]:
        """The share of each layer in the trace, by name; empty where there is none."""
        return {layer.name: layer.share for layer in self.layers or ()}


def _is_unknown(name: str, value: float) -> bool:
    """Tell whether NaN stands for something that is not known yet: a single sample has no standard error."""
    return math.isnan(value) and "_stderr" in name
