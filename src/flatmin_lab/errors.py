"""What goes wrong in the laboratory, as types below the library's own.

The tree::

    LabError                (FlatminError)     base of the laboratory's errors
    ├── DivergedError                          training reached NaN or infinity
    ├── StoreError                             a run folder cannot be read or written, or holds something else
    │   └── LockedError                        another process works in the same run folder
    ├── WorkerError                            a worker process ended before its run did
    ├── WeightsError                           weights cannot be read, or fit no known model
    └── MissingPackageError                    a package that only this data or model needs is not installed
"""

from __future__ import annotations

from flatmin.errors import FlatminError


class LabError(FlatminError):
    """Base of every error that the laboratory raises on purpose."""


class DivergedError(LabError):
    """Training reached NaN or infinity.

    Args:
        message: What happened, to which run, and what to do.
        gradient_evaluations: How many the run had used.
        seconds: How long it had trained.
    """

    def __init__(self, message: str, *, gradient_evaluations: int, seconds: float) -> None:
        super().__init__(message)
        self.gradient_evaluations = gradient_evaluations
        self.seconds = seconds


class StoreError(LabError):
    """A run folder cannot be read or written, or holds runs of another configuration."""


class LockedError(StoreError):
    """Another process works in the same run folder."""


class WorkerError(LabError):
    """A worker process ended before its run did."""


class WeightsError(LabError):
    """Weights cannot be read, or fit no known model."""


class MissingPackageError(LabError):
    """A package that only this data or model needs is not installed."""
