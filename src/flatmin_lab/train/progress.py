"""Progress of one run on standard error: a bar on a terminal, an occasional line anywhere else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from flatmin_lab.spec import Point, RunSpec

_SECONDS_BETWEEN_LINES = 10.0


class RunBar:
    """Shows how far one run is, with its loss, its validation accuracy and the live trace of methods that have one.

    Args:
        console: Where; a console on standard error, so that standard output holds results alone.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spec: RunSpec | None = None
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()
        after = TextColumn("{task.fields[at]}"), TimeRemainingColumn()
        self._progress = Progress(*columns, *after, console=console, transient=True)
        self._bar = self._progress.add_task("run", total=None, at="", visible=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def note(self, message: str) -> None:
        """Print one line above the bar."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def begin(self, spec: RunSpec, evaluations: int) -> None:
        """Show that training begins, or goes on after so many gradient evaluations."""
        self._spec = spec
        self._progress.update(
            self._bar, description=spec.name, total=spec.budget, completed=evaluations, visible=True, at=""
        )

    def point(self, point: Point) -> None:
        """Show a point of the history."""
        self._show(_told(point), point.evaluations)

    def measuring(self, spec: RunSpec) -> None:
        """Show that the curvature is measured."""
        self.begin(spec, spec.budget)
        self._show("measuring curvature", spec.budget)

    def _show(self, at: str, evaluations: int) -> None:
        if self._console.is_terminal:
            self._progress.update(self._bar, completed=evaluations, at=at)
        elif self._spec is not None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            self.note(f"{self._spec.name}: {evaluations} of {self._spec.budget} evaluations, {at}")


def _told(point: Point) -> str:
    at = f"loss {point.train_loss:.4f}, validation accuracy {point.validation_accuracy:.1%}"
    if point.live_trace is None:
        return at
    error = "" if point.live_trace_stderr is None else f" ± {point.live_trace_stderr:.2g}"
    return f"{at}, trace {point.live_trace:.4g}{error}"
