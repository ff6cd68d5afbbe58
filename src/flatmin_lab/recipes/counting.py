"""How far the runs of a recipe are, as its watch is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.plan import Planned
from flatmin_lab.sweep import Finished

if TYPE_CHECKING:
    from flatmin_lab.recipes.outcome import Watch
    from flatmin_lab.sweep import Event


class Counting:
    """Tells a recipe's watch how many runs are done.

    Args:
        watch: The recipe's.
        what: What is counted.
    """

    def __init__(self, watch: Watch, what: str = "runs") -> None:
        self._watch, self._what = watch, what
        self._done = self._total = 0

    def __call__(self, event: Event | Planned) -> None:
        """Count what has happened."""
        if isinstance(event, Planned):
            self._done, self._total = event.runs_done, event.runs_total
        elif isinstance(event, Finished):
            self._done += event.job.stored is None
        else:
            return
        self._watch(self._what, self._done, self._total)
