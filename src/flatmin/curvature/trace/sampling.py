r"""A trace as a known part and the mean of independent samples, which are drawn until their error is small enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from flatmin.curvature.results import student_quantile

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_ENOUGH = 32  # samples whose own deviation can be trusted
SMALL_SAMPLE = 8  # enough where something better than their deviation stands beside it
_FEWEST = 4
_UNSURE = 25.0  # the variance of four samples is that much too small in one case of a hundred
_NORMAL = 1.959964  # the 97.5 % quantile of the normal law


@dataclass(frozen=True)
class Goal:
    """What is asked for: a standard error, or none (both zero), and the number of products that may be spent."""

    budget: int
    rtol: float = 0.0
    atol: float = 0.0

    @property
    def asked(self) -> bool:
        """Whether a standard error is to be reached."""
        return self.rtol > 0 or self.atol > 0

    def tolerance(self, value: float) -> float:
        """Return the standard error to reach at an estimate of ``value``."""
        return max(self.atol, self.rtol * abs(value))


def cautious(stderr: float, n: int) -> float:
    """Return the standard error of a normal law whose 95 % interval is as long as Student's for ``n`` samples."""
    return student_quantile(0.975, n - 1) / _NORMAL * stderr


class Drawn(NamedTuple):
    """Quadratic forms z'Bz, shape (n,), and where they are known the squared lengths of the images, of mean ‖B‖²."""

    forms: Tensor
    energies: Tensor | None = None


@dataclass
class Samples:
    r"""Samples of what is left of a trace beside its known part.

    The standard error of n samples is their deviation over √n, which few samples know badly: eight of a skewed law
    are alike by accident too often, and a rule that stops when they are stops at the wrong moments. So

    1. the deviation decides alone from 32 samples on, or from 8 if the error is a third of what was asked for;
    2. where the squared lengths of the images are known, 8 samples suffice, or 4 if the error is half of what was asked
       for, on two conditions: the variance that these lengths predict, which is known many times better, must be as
       small; and n must be at least 32 times their squared coefficient of variation. That is 2/r if the operator is as
       if it had r equal eigenvalues, and the skewness of the mean, √(8/(r n)), is then at most 1/√2;
    3. what has to be reached is a 95 % interval of Student's law as short as a normal one with the standard error asked
       for, so that few samples need a smaller deviation;
    4. the number of samples at the next look is set in advance, at 0.9 of what seems needed.

    Args:
        draw: Returns the samples of the probes with numbers from start up to stop.
        variance: Makes of the mean energy and the mean form the variance of a sample; see :meth:`Probes.variance`.
        offset: The known part.
        offset_stderr: Its standard error.
        guarded: Whether some samples come with energies.
    """

    draw: Callable[[int, int], Drawn]
    variance: Callable[[float, float], float]
    offset: float = 0.0
    offset_stderr: float = 0.0
    guarded: bool = True
    forms: list[float] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)

    def take(self, drawn: Drawn) -> None:
        """Add samples."""
        self.forms += drawn.forms.tolist()
        self.energies += [] if drawn.energies is None else drawn.energies.tolist()

    def run(self, goal: Goal, *, most: int, width: int) -> bool:
        """Draw until the goal is reached or there are ``most``; tell whether it was, ``width`` probes at a time."""
        looks = (_FEWEST, SMALL_SAMPLE, _ENOUGH) if self.guarded else (SMALL_SAMPLE, _ENOUGH)
        target = min(most, looks[0]) if goal.asked else most
        while True:
            while (n := len(self.forms)) < target:
                self.take(self.draw(n, min(target, n + width)))
            if not goal.asked or self.reached(goal):
                return True
            if n >= most:
                return False
            tolerance = goal.tolerance(self.value)
            needed = n * (self._cautious() / tolerance) ** 2 if tolerance else math.inf
            look = max(n + 1, int(min(0.9 * needed, 2 * n)))
            target = min(most, look, *(later for later in looks if later > n))

    @property
    def total(self) -> Tensor:
        """The samples with the known part added to each, float64."""
        return torch.tensor(self.forms, dtype=torch.float64) + self.offset

    @property
    def value(self) -> float:
        """The estimate."""
        return float(self.total.mean())

    @property
    def stderr(self) -> float:
        """Its standard error."""
        return math.hypot(float(self.total.std()) / math.sqrt(len(self.forms)), self.offset_stderr)

    def reached(self, goal: Goal) -> bool:
        """Tell whether the standard error is known to be small enough."""
        margin = self._margin()
        return margin < math.inf and margin * self._cautious() <= goal.tolerance(self.value)

    def fewest(self) -> float:
        """Return the number of samples from which on their mean is not too skewed."""
        energies = torch.tensor(self.energies, dtype=torch.float64)
        if len(energies) < 2 or not energies.any():
            return 0.0
        return min(float(_ENOUGH), _ENOUGH * float(energies.var() / energies.mean().square()))

    def expected_variance(self) -> float:
        """Return the variance to expect of a sample: the predicted one, unless the deviation is far below it."""
        seen = float(self.total.var()) if len(self.forms) > 1 else math.inf
        return min(self._predicted(), _UNSURE * seen) if self.energies else seen

    def _margin(self) -> float:
        """Return by how much the error has to be smaller than asked for."""
        n = len(self.forms)
        if n >= _ENOUGH:
            return 1.0
        if not self.guarded:
            return 3.0 if n >= SMALL_SAMPLE else math.inf
        if n < max(_FEWEST, self.fewest()):
            return math.inf
        return 1.0 if n >= SMALL_SAMPLE else 2.0

    def _cautious(self) -> float:
        n = len(self.forms)
        squared = float(self.total.var())
        if n < _ENOUGH:
            squared = max(squared, self._predicted())
        return math.hypot(cautious(math.sqrt(squared / n), n), self.offset_stderr)

    def _predicted(self) -> float:
        """Return the variance of a sample that the energies predict; zero without them."""
        if not self.energies:
            return 0.0
        return self.variance(sum(self.energies) / len(self.energies), sum(self.forms) / len(self.forms))
