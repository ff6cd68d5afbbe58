"""Whether a model is being measured rather than trained, which those that displace its weights by hooks ask."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEASURING: ContextVar[bool] = ContextVar("flatmin_measuring", default=False)


def is_measuring() -> bool:
    """Tell whether forward passes now are a measurement, for which weights stay where they are."""
    return _MEASURING.get()


@contextmanager
def measuring() -> Iterator[None]:
    """Say that forward passes inside this context are a measurement.

    Example:
        >>> with measuring():
        ...     is_measuring()
        True
        >>> is_measuring()
        False
    """
    token = _MEASURING.set(True)
    try:
        yield
    finally:
        _MEASURING.reset(token)
