"""What methods and attachments tell of the curvature that training sees, from gradients that it computes anyway."""

from __future__ import annotations

from abc import abstractmethod

from flatmin.curvature.layerwise.groups import Groups as Groupings
from flatmin.curvature.layerwise.results import LayerwiseResult
from flatmin.curvature.results import TraceEstimate
from flatmin.optim.groups import Groups
from flatmin.optim.live_trace import LiveTrace
from flatmin.optim.noise_to_signal import NoiseToSignal


class Readings:
    """The live trace by group and by layer, and the noise-to-signal ratio. Reading any of them waits for the device."""

    @abstractmethod
    def _observed(self) -> tuple[LiveTrace, Groups, NoiseToSignal | None]:
        """Return the samples of the trace, the parameters they are of, and the gradients that were compared last."""

    @property
    def group_trace_estimates(self) -> tuple[TraceEstimate, ...] | None:
        """``trace_estimate`` of each parameter group: traces of the diagonal blocks, which add up to the whole."""
        trace, groups, _ = self._observed()
        return trace.group_estimates(groups.positions())

    def layer_trace_estimates(self, groups: Groupings = "module") -> LayerwiseResult | None:
        """Return ``trace_estimate`` of each layer, with its share of the whole; layers that do not move have no row.

        Args:
            groups: Which parameters make a layer, see :func:`flatmin.layerwise`.

        Raises:
            ArgumentError: The groups do not fit.
        """
        trace, parameters, _ = self._observed()
        return trace.layers(parameters.names(), groups)

    @property
    def noise_to_signal(self) -> float | None:
        r"""How far the gradients at the points of a step lie apart, against their mean, at the last step compared.

        :math:`\sqrt{\sum_i w_i \|g_i - \bar g\|^2} / \|\bar g\|` over the points with their weights, for a pair
        :math:`\|g_+ - g_-\| / 2\|\bar g\|`. Above 1 the noise in the direction is longer than the direction itself. The
        points of an attachment are the micro-batches of a step, so that there the number tells of weight noise and of
        the choice of examples together. None before ``compare_gradients()``, for steps of one point, for methods that
        are not linear in the gradients, and where several processes train.
        """
        compared = self._observed()[2]
        ratio = None if compared is None else compared.ratio
        return None if ratio is None else float(ratio)
