"""What Figure 3 came to: the start, and for every method and batch size the walks by radius and by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin_lab.statistics import Interval, mean_interval

if TYPE_CHECKING:
    from flatmin_lab.recipes.escape2023.fig3_kept import Start
    from flatmin_lab.recipes.escape2023.fig3_scales import Scale, Way
    from flatmin_lab.recipes.escape2023.fig3_walks import Look, Walk

PAPER_START = 48.0
"""Test accuracy of the paper's start in percent; it has all of the training data right."""


@dataclass(frozen=True)
class Chosen:
    """A method at a batch size: what was tried, and the final walks.

    Attributes:
        way: Method and batch size.
        rho: Chosen.
        tried: Walks of the first seeds by radius; empty where there was nothing to choose.
        walks: One a seed, with the chosen radius.
    """

    way: Way
    rho: float
    tried: Mapping[float, tuple[Walk, ...]]
    walks: tuple[Walk, ...]

    def ends(self, metric: str) -> list[float]:
        """A metric at the end of each walk, accuracies in percent; NaN where it diverged."""
        return [end(walk, metric) for walk in self.walks]

    def least_train_accuracy(self) -> float:
        """The least of all looks of all seeds, in percent."""
        return 100 * min(look.train_accuracy for walk in self.walks for look in walk.looks)


@dataclass(frozen=True)
class Results:
    """Everything that a size came to.

    Attributes:
        scale: The size.
        start: Where the walks begin.
        chosen: In the order of the scale's ways.
        notes: On files that were made again.
    """

    scale: Scale
    start: Start
    chosen: tuple[Chosen, ...]
    notes: tuple[str, ...]

    def of(self, method: str, batch_size: int) -> Chosen | None:
        """The walks of a method at a batch size, if there are any."""
        found = [c for c in self.chosen if (c.way.method, c.way.batch_size) == (method, batch_size)]
        return found[0] if found else None

    def over(self, one: Chosen, other: Chosen | Look, metric: str) -> Interval:
        """Difference of ends by seed, of accuracies in points: to other walks, or to the start."""
        mine = one.ends(metric)
        theirs = other.ends(metric) if isinstance(other, Chosen) else [shown(other, metric)] * len(mine)
        return mean_interval([a - b for a, b in zip(mine, theirs, strict=True)])


def end(walk: Walk, metric: str) -> float:
    """A metric at the end of a walk, accuracies in percent; NaN where it diverged."""
    return math.nan if walk.diverged else shown(walk.looks[-1], metric)


def shown(look: Look, metric: str) -> float:
    """A metric as it is shown: accuracies in percent, NaN where it was not measured."""
    value = getattr(look, metric)
    return math.nan if value is None else float(value) * (100 if metric.endswith("accuracy") else 1)
