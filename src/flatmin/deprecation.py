"""What will go away says so first: a warning that names the replacement, and a release in which it is gone.

`FutureWarning` rather than `DeprecationWarning`, which Python hides outside of ``__main__``: whoever calls a training
script should see it.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flatmin.errors import ArgumentTypeError

_P = ParamSpec("_P")
_R = TypeVar("_R")

_announced: dict[str, str] = {}


def deprecated(*, since: str, removed_in: str, instead: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function, or a method, warn on each call that it will go away.

    Args:
        since: The release that warns first.
        removed_in: The release without it.
        instead: What to write in its place.

    Example:
        >>> @deprecated(since="0.2", removed_in="0.4", instead="trace(H)")
        ... def hessian_trace():
        ...     return 3.0
        >>> import warnings
        >>> with warnings.catch_warnings(record=True, action="always") as seen:
        ...     hessian_trace()
        3.0
        >>> print(seen[0].message)
        hessian_trace is deprecated since flatmin 0.2 and will be removed in 0.4. Write trace(H) instead.
    """

    def mark(function: Callable[_P, _R]) -> Callable[_P, _R]:
        what = function.__qualname__.rpartition("<locals>.")[2]
        message = _announce(what, since=since, removed_in=removed_in, instead=instead)

        @functools.wraps(function)
        def warning(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            warnings.warn(message, FutureWarning, stacklevel=2)
            return function(*args, **kwargs)

        return warning

    return mark


def renamed_argument(
    old: str, new: str, *, since: str, removed_in: str
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function go on taking a keyword argument by its former name, with a warning.

    Args:
        old: The former name.
        new: The present one.
        since: The release that warns first.
        removed_in: The release that no longer knows the former name.

    Raises:
        ArgumentTypeError: When the function is called with both names.

    Example:
        >>> @renamed_argument("r", "rho", since="0.2", removed_in="0.4")
        ... def ascend(*, rho):
        ...     return rho
        >>> import warnings
        >>> with warnings.catch_warnings(record=True, action="always") as seen:
        ...     ascend(r=0.1)
        0.1
        >>> print(seen[0].message)
        ascend(r=...) is deprecated since flatmin 0.2 and will be removed in 0.4. Write ascend(rho=...) instead.
    """

    def mark(function: Callable[_P, _R]) -> Callable[_P, _R]:
        name = function.__qualname__.rpartition("<locals>.")[2]
        message = _announce(f"{name}({old}=...)", since=since, removed_in=removed_in, instead=f"{name}({new}=...)")

        @functools.wraps(function)
        def renaming(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if old in kwargs:
                if new in kwargs:
                    raise ArgumentTypeError(
                        f"{name} was given {old} and {new}, two names of one thing. Give {new} alone."
                    )
                warnings.warn(message, FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renaming

    return mark


def overdue(version: str) -> list[str]:
    """Return what was to be removed in ``version`` or before and is still here; a release is refused until it is empty.

    Args:
        version: Numbers separated by dots; a candidate such as ``0.4.0rc1`` counts as the release it is for.
    """
    return sorted(what for what, removed_in in _announced.items() if _numbers(removed_in) <= _numbers(version))


def _announce(what: str, *, since: str, removed_in: str, instead: str) -> str:
    _announced[what] = removed_in
    return f"{what} is deprecated since flatmin {since} and will be removed in {removed_in}. Write {instead} instead."


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.sub(r"(a|b|rc)\d+$", "", version)))
