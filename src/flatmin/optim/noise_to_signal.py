r"""How far the gradients at the points of one step lie from their mean, against the length of that mean.

For the points of a step with weights :math:`w_i` and gradients :math:`g_i`, whose mean :math:`\bar g = \sum_i w_i g_i`
is the direction,

.. math:: \mathrm{NSR} = \sqrt{\sum_i w_i \|g_i - \bar g\|^2} \,/\, \|\bar g\|.

For one antithetic pair this is :math:`\|g_+ - g_-\| / 2\|\bar g\|`, on a quadratic :math:`\|Hu\| / \|\nabla f(w)\|`.
It is the measure of McCandlish et al. (arXiv:1812.06162, their simple noise scale), with weight noise in the place of
the choice of examples; where each point has a micro-batch of its own (:func:`flatmin.attach`) it has both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from flatmin.distributed import local
from flatmin.perturb import Probe
from flatmin.perturb.gradients import current
from flatmin.perturb.sweeps import chunks
from flatmin.vectors import Vector, dense, plain_total

_CHUNK = 2**20  # elements that are worked on at a time


class NoiseToSignal:
    """Measured at one step, from what ``.grad`` holds after each of its points.

    Gradients accumulate there, so that those of one point are a difference: of what ``.grad`` held a copy is kept until
    the next point, as large as the gradients. The sum of squares is updated point by point (West, 1979), so that
    nothing cancels. Nothing waits for the device, and no other rank is asked.

    Example:
        >>> measured = NoiseToSignal()
        >>> measured.begin({}, 1.0)
        >>> for total in ([1.0, 3.0], [2.0, 4.0]):  # gradients (1, 3) and (1, 1), which add up
        ...     measured.add({0: torch.tensor(total)}, 1.0)
        >>> measured.ratio  # |(0, 2)| / 2 over |(1, 2)|
        tensor(0.4472, dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.points: int = 0
        self._origin: dict[int, Tensor] = {}
        self._before: dict[int, Tensor] = {}
        self._weight = 0.0
        self._spread: Tensor | None = None
        self._signal: Tensor | None = None

    def through(self, probes: Iterable[Probe], parameters: Mapping[int, Tensor]) -> Iterator[Probe]:
        """Yield ``probes``, and take account of each once it was evaluated; not of methods that are not linear."""
        for probe in probes:
            if probe.weight is None:
                yield probe
                continue
            if probe.number == 0:
                self.begin(current(parameters), probe.weight)
            yield probe
            self.add(current(parameters), probe.weight)
        self.end()

    def begin(self, gradients: Mapping[int, Tensor], weight: float) -> None:
        """Take note of what ``.grad`` holds before the first point, and that it is to be multiplied by ``weight``."""
        self.__init__()
        self._origin = {i: _wide(gradient) * weight for i, gradient in gradients.items()}

    @torch.no_grad()
    def add(self, gradients: Mapping[int, Tensor], weight: float) -> None:
        """Take account of a point.

        Args:
            gradients: What ``.grad`` holds after it, by position.
            weight: The point's; this times ``gradients`` is the direction so far.
        """
        weights, spreads, signals = self._weight + weight, {}, {}
        for number, positions in enumerate(chunks(gradients, _CHUNK)):
            now = Vector({i: _wide(gradients[i]) for i in positions}) * weight
            now += -1.0 * Vector({i: self._origin[i] for i in positions if i in self._origin})
            if self.points:
                before = Vector({i: self._before[i] for i in positions if i in self._before})
                away = now * (1 / weight) + before * -(1 / weight + 1 / self._weight)
                spreads[number] = away.norm().square() * (weight * self._weight / weights)
            signals[number] = now.norm().square()
            for i, tensor in now.tensors.items():
                self._before[i] = self._before[i].copy_(tensor) if i in self._before else tensor
        spread = plain_total(spreads)
        self._spread = spread if self._spread is None else self._spread.to(spread.device) + spread
        self._signal = plain_total(signals)
        self._weight = weights
        self.points += 1

    def end(self) -> None:
        """Let go of the copies."""
        self._origin, self._before = {}, {}

    @property
    def ratio(self) -> Tensor | None:
        """The ratio, 0-dim on the device; None if there were not two points."""
        if self.points < 2 or self._spread is None or self._signal is None:
            return None
        return (self._spread * self._weight / self._signal).sqrt()


def _wide(gradient: Tensor) -> Tensor:
    """Return a gradient as dense real numbers of at least 32 bits."""
    gradient = local(dense(gradient))
    return gradient.float() if gradient.dtype.itemsize < 4 else gradient
