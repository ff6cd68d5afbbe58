"""Checks of arguments that several rooms share; each raises with the value, the likely cause and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from flatmin.errors import ArgumentError, ArgumentTypeError


def nonnegative(name: str, value: Any, *, hint: str) -> float:
    """Return ``value`` as a float, or say why it is no finite number of at least zero."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"{name} is {value!r}, which is no number. {hint}")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ArgumentError(f"{name} is {value!r}, but it must be finite and at least 0. {hint}")
    return number


def positive(name: str, value: Any, *, hint: str) -> float:
    """Return ``value`` as a float, or say why it is no finite number above zero."""
    number = nonnegative(name, value, hint=hint)
    if number == 0:
        raise ArgumentError(f"{name} is 0, but it must be above 0. {hint}")
    return number


def whole(name: str, value: Any, *, minimum: int, hint: str) -> int:
    """Return ``value`` as an int of at least ``minimum``, or say why it is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ArgumentTypeError(f"{name} is {value!r}, which is no whole number. {hint}")
    if value < minimum:
        raise ArgumentError(f"{name} is {value}, but it must be at least {minimum}. {hint}")
    return int(value)


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``options``, or name the options and the nearest one."""
    options = list(options)
    if value in options:
        return value
    nearest = difflib.get_close_matches(str(value).lower(), options, n=1)
    meant = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ArgumentError(f"{name} is {value!r}, but it must be one of {', '.join(map(repr, options))}.{meant}")
