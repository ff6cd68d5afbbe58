"""Hyperparameters that change with the step: anywhere sigma or rho is a number, a function of the step may stand.

A schedule is any callable from the number of steps taken (0, 1, 2, ...) to a float; these are the usual ones. They are
plain values: they compare, print and pickle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flatmin.checks import nonnegative, positive, whole
from flatmin.errors import ArgumentTypeError

Schedule = Callable[[int], float]

_STEPS = "It is the number of optimizer steps that the change takes."
_VALUE = "It is a value of sigma or rho."


@dataclass(frozen=True)
class Ramp:
    """A move from ``start`` to ``end`` in ``num_steps`` steps, which then stays there."""

    shape: Literal["linear", "exponential", "cosine"]
    start: float
    end: float
    num_steps: int

    def __post_init__(self) -> None:
        check = positive if self.shape == "exponential" else nonnegative
        check("start", self.start, hint=_VALUE)
        check("end", self.end, hint=_VALUE)
        whole("num_steps", self.num_steps, minimum=1, hint=_STEPS)

    def __call__(self, step: int) -> float:
        """Return the value at ``step``."""
        t = min(step / self.num_steps, 1.0)
        if t == 1.0:
            return self.end
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** t
        if self.shape == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return self.start + (self.end - self.start) * t


def _require_phase(schedule: float | Schedule, num_steps: int) -> None:
    """Raise unless ``schedule``, a number or a function, can be changed by a phase of ``num_steps`` steps."""
    whole("num_steps", num_steps, minimum=1, hint=_STEPS)
    if not callable(schedule):
        nonnegative("schedule", schedule, hint=_VALUE)


@dataclass(frozen=True)
class Warmup:
    """A linear rise from nothing to ``schedule`` over ``num_steps`` steps."""

    schedule: float | Schedule
    num_steps: int

    def __post_init__(self) -> None:
        _require_phase(self.schedule, self.num_steps)

    def __call__(self, step: int) -> float:
        """Return the value at ``step``."""
        return min(step / self.num_steps, 1.0) * value_at(self.schedule, step, name="schedule")


@dataclass(frozen=True)
class Cutoff:
    """``schedule`` for ``num_steps`` steps, and 0 from then on."""

    schedule: float | Schedule
    num_steps: int

    def __post_init__(self) -> None:
        _require_phase(self.schedule, self.num_steps)

    def __call__(self, step: int) -> float:
        """Return the value at ``step``."""
        return value_at(self.schedule, step, name="schedule") if step < self.num_steps else 0.0


def linear(start: float, end: float, num_steps: int) -> Ramp:
    """Return the straight line from ``start`` to ``end`` in ``num_steps`` steps.

    Example:
        >>> [round(linear(0.0, 0.01, 4)(step), 4) for step in range(6)]
        [0.0, 0.0025, 0.005, 0.0075, 0.01, 0.01]
    """
    return Ramp("linear", start, end, num_steps)


def exponential(start: float, end: float, num_steps: int) -> Ramp:
    """Return the geometric curve from ``start`` to ``end`` (both above zero) in ``num_steps`` steps.

    Example:
        >>> [round(exponential(0.001, 0.1, 2)(step), 4) for step in range(3)]
        [0.001, 0.01, 0.1]
    """
    return Ramp("exponential", start, end, num_steps)


def cosine(start: float, end: float, num_steps: int) -> Ramp:
    """Return the half cosine from ``start`` to ``end`` in ``num_steps`` steps.

    Example:
        >>> [round(cosine(0.02, 0.0, 4)(step), 4) for step in (0, 2, 4)]
        [0.02, 0.01, 0.0]
    """
    return Ramp("cosine", start, end, num_steps)


def warmup(schedule: float | Schedule, num_steps: int) -> Warmup:
    """Return ``schedule`` (a number or another schedule) preceded by a linear rise from zero.

    Example:
        >>> [warmup(0.01, 2)(step) for step in range(4)]
        [0.0, 0.005, 0.01, 0.01]
    """
    return Warmup(schedule, num_steps)


def cutoff(schedule: float | Schedule, num_steps: int) -> Cutoff:
    """Return ``schedule`` (a number or another schedule) for ``num_steps`` steps, followed by zero.

    As ``rho`` of ``RandomlySmoothed`` and ``SharpnessAware`` it begins the final phase of gradient descent.

    Example:
        >>> [cutoff(0.1, 2)(step) for step in range(4)]
        [0.1, 0.1, 0.0, 0.0]
    """
    return Cutoff(schedule, num_steps)


def value_at(value: float | Schedule, step: int, *, name: str) -> float:
    """Return ``value``, or what it gives at ``step`` if it is a schedule, checked to be finite and at least zero.

    Raises:
        ArgumentError: The number is negative, infinite or NaN.
        ArgumentTypeError: It is no number.
    """
    if isinstance(value, type):
        raise ArgumentTypeError(f"{name} is the class {value.__name__}; pass a number or a function of the step.")
    if callable(value):
        return nonnegative(f"{name} at step {step}", value(step), hint=f"It came from the schedule {value!r}.")
    return nonnegative(name, value, hint=f"{name} is a length in the units of the weights; 0 turns the method off.")
