"""What goes wrong, as types.

Every message names the value, its likely cause and the remedy. The tree::

    FlatminError
    ├── ArgumentError       (ValueError)       an argument has a value that cannot work
    ├── ArgumentTypeError   (TypeError)        an argument is of the wrong kind
    ├── ClosureError        (RuntimeError)     a closure returned nothing or computed no gradient
    ├── ProbeError          (RuntimeError)     the loop over probes was left unfinished or used out of order
    ├── NonFiniteError      (ArithmeticError)  NaN or infinity in a loss, a gradient or a measurement
    ├── RankError           (RuntimeError)     another rank failed, or the ranks do different things
    └── DataError           (ValueError)       batches are empty, run dry or have an unexpected layout
"""

from __future__ import annotations


class FlatminError(Exception):
    """Base of every error that flatmin raises on purpose."""


class ArgumentError(FlatminError, ValueError):
    """An argument has a value that cannot work."""


class ArgumentTypeError(FlatminError, TypeError):
    """An argument is of the wrong kind."""


class ClosureError(FlatminError, RuntimeError):
    """A closure returned nothing, or no gradient came out of it."""


class ProbeError(FlatminError, RuntimeError):
    """The loop over probes was left unfinished or used out of order."""


class NonFiniteError(FlatminError, ArithmeticError):
    """NaN or infinity in a loss, a gradient or a measurement."""


class RankError(FlatminError, RuntimeError):
    """Another rank failed, or the ranks do different things."""


class DataError(FlatminError, ValueError):
    """Batches are empty, run dry, or have an unexpected layout."""
