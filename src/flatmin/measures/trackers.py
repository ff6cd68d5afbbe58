"""Whoever keeps records of a run: what they have to be able to do, and what becomes of a run if they cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol


class Tracker(Protocol):
    """Whoever keeps records of a run: trackio, wandb, TensorBoard, a file (:mod:`flatmin.integrations.trackers`)."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep numbers by name; steps come in ascending order."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class Guarded:
    """A tracker whose failures do not end the run: a full disk or a lost connection costs records, not hours.

    Of the first failure somebody is told; the tracker is told all the same what comes later.

    Args:
        tracker: The one that may fail.
        note: Told in one line.

    Example:
        >>> class Full:
        ...     def log(self, metrics, step):
        ...         raise OSError("No space left on device")
        >>> Guarded(Full(), print).log({"loss": 0.5}, step=10)
        The tracker Full failed at step 10: No space left on device. The run goes on, with a gap in its records.
    """

    def __init__(self, tracker: Tracker, note: Callable[[str], object]) -> None:
        self._tracker, self._note = tracker, note
        self._has_failed = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Tell the tracker."""
        try:
            self._tracker.log(metrics, step)
        except Exception as error:  # noqa: BLE001  (whatever a foreign package raises)
            self._tell(f"at step {step}", error)

    def close(self) -> None:
        """Close the tracker."""
        try:
            self._tracker.close()
        except Exception as error:  # noqa: BLE001
            self._tell("to close", error)

    def _tell(self, when: str, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            why = str(error) or type(error).__name__
            self._note(
                f"The tracker {type(self._tracker).__name__} failed {when}: {why.rstrip('.')}. "
                "The run goes on, with a gap in its records."
            )
