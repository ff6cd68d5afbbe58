"""The step of a finite difference, chosen from the data: where truncation and rounding are as small as each other."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_MOST = 14  # steps that are tried
_NOISE = 0.3  # relative error above which nothing is known
_LIMIT = 1.0  # a step as long as the weights themselves


Value = float | Tensor | None


class Step(NamedTuple):
    """A step and what it is worth.

    Attributes:
        size: The step.
        error: The estimated error of a difference at this step, relative to the size of what is differenced.
    """

    size: float
    error: float


class Steps(dict[Hashable, Step]):
    """Steps by what they are for."""

    @property
    def error(self) -> float | None:
        """The largest of their errors; None without any."""
        return max((step.error for step in self.values()), default=None)

    def __str__(self) -> str:
        """Show their range and their error, to go on from what they are steps of; nothing without any."""
        if not self:
            return ""
        ends = dict.fromkeys(f"{end({step.size for step in self.values()}):.2g}" for end in (min, max))
        return f", step {' to '.join(ends)} (error {self.error:.1g})"


def step_for(
    types: Iterable[torch.dtype], evaluate: Callable[[float], tuple[float, float]], *, rounding: float
) -> Step:
    """Choose a step, relative to the norm of the weights, for weights and outputs of some types.

    Args:
        types: Types of the weights and of what is differenced.
        evaluate: As for :func:`choose_step`.
        rounding: Likewise.

    Raises:
        ArgumentError: A type has 16 bits, and is too coarse for any step.
    """
    coarsest = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    eps = torch.finfo(coarsest).eps
    step = choose_step(evaluate, eps ** (1 / (2 + rounding)), rounding=rounding, enough=eps**0.5, limit=_LIMIT)
    if not step.error <= _NOISE and coarsest.itemsize < 4:
        raise ArgumentError(
            f"numbers of {coarsest} are too coarse for differences: at the best step, {step.size:.2g} of the weights' "
            f"norm, a quadratic form is uncertain by {step.error:.0%}. Measure a copy in float32, "
            "copy.deepcopy(model).float(), without autocast, or use Hessian, which takes derivatives."
        )
    return step


def choose_step(
    evaluate: Callable[[float], tuple[Value, float]], start: float, *, rounding: float, enough: float, limit: float
) -> Step:
    r"""Choose a step on a ladder of powers of two around ``start``.

    The error of a central difference is :math:`a h^2` by truncation and :math:`b h^{-p}` by rounding. The difference
    between the values at h and 2h shows it (three times the first, about once the second); what a pair shows on one
    rung, it bounds on the others by these laws, so that an accidental agreement of two values is not taken for
    precision. The ladder grows until the least error lies inside it, or is small enough.

    Args:
        evaluate: Returns the value at a step, a number or a vector, None where it is not finite, and the magnitude of
            its parts, by which the error is divided.
        start: The first step.
        rounding: p: 2 for a second difference, 1 for a first.
        enough: The error that is small enough.
        limit: The largest step that makes sense; not much below ``start``.

    Example:
        >>> def second_difference(h):
        ...     return 1 + h**2 + 1e-8 / h**2 * math.sin(1 / h), 1.0
        >>> choose_step(second_difference, 1.0, rounding=2, enough=1e-6, limit=8.0).size
        0.0078125
    """
    highest = math.floor(math.log2(limit / start))
    ladder = _Ladder(lambda rung: evaluate(start * 2.0**rung), rounding)
    for rung in (-1, 0, 1):
        if rung <= highest:
            ladder.add(rung)
    while True:
        best, error = ladder.best()
        low, high = min(ladder.sizes), max(ladder.sizes)
        beyond = low - 1 if best == low else high + 1 if best == high - 1 and high < highest else None
        if beyond is None or error <= enough or len(ladder.sizes) == _MOST:
            return Step(start * 2.0**best, error)
        ladder.add(beyond)


def distance(one: Value, other: Value) -> float:
    """Return how far two values are apart; infinity where one is not finite."""
    if one is None or other is None:
        return math.inf
    apart = abs(float((one - other).norm() if isinstance(one, Tensor) else one - other))
    return math.inf if math.isnan(apart) else apart


class _Ladder:
    """Values on the rungs of a ladder, of which only the outermost are kept, and the distances between neighbours.

    Args:
        evaluate: Returns the value on a rung, and its magnitude.
        rounding: As for :func:`choose_step`.

    Attributes:
        sizes: The magnitude on each rung.
    """

    def __init__(self, evaluate: Callable[[int], tuple[Value, float]], rounding: float) -> None:
        self._evaluate, self._rounding = evaluate, rounding
        self.sizes: dict[int, float] = {}
        self._ends: dict[int, Value] = {}
        self._shown: dict[int, float] = {}  # between a rung and the next

    def add(self, rung: int) -> None:
        """Add a rung below or above all others."""
        self._ends[rung], self.sizes[rung] = self._evaluate(rung)
        for lower in (rung - 1, rung):
            if lower in self._ends and lower + 1 in self._ends:
                self._shown[lower] = distance(self._ends[lower + 1], self._ends[lower])
        self._ends = {k: value for k, value in self._ends.items() if k in (min(self.sizes), max(self.sizes))}

    def best(self) -> tuple[int, float]:
        """Return the rung with the least relative error, and that; where all is noise, with the least absolute one."""
        errors = {k: self._error(k) for k in self._shown}
        relative = {k: _relative(e, self.sizes[k]) for k, e in errors.items()}
        best = min(relative, key=relative.__getitem__)
        if relative[best] > _NOISE:
            best = min(errors, key=errors.__getitem__)
        return best, relative[best]

    def _error(self, rung: int) -> float:
        """Return the error of a rung: the most that any pair of neighbours lets it be; an overflow tells of its own."""
        known = {j: e for j, e in self._shown.items() if j == rung or math.isfinite(e)}
        return max(e * 2.0 ** (-2 * (j - rung) if j > rung else -self._rounding * (rung - j)) for j, e in known.items())


def _relative(error: float, size: float) -> float:
    return error / size if size > 0 else math.inf if error > 0 else 0.0
