"""Progress of one run on standard error: a live picture on a terminal, an occasional line anywhere else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live

from flatmin_lab.train.view import View, trace_text

if TYPE_CHECKING:
    from flatmin_lab.spec import Point, RunSpec

_SECONDS_BETWEEN_LINES = 10.0
_MEASURING = "measuring curvature"


class RunBar:
    """Shows how far one run is, with its loss, its validation accuracy and the live curvature of methods that have one.

    Args:
        console: Where; a console on standard error, so that standard output holds results alone.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spec: RunSpec | None = None
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._view = View(console)
        self._live = Live(self._view, console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, message: str) -> None:
        """Print one line above the picture."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def begin(self, spec: RunSpec, evaluations: int, past: Sequence[Point] = ()) -> None:
        """Show that training begins, or goes on after so many gradient evaluations and with the history so far."""
        self._spec = spec
        self._view.begin(spec, evaluations, past)
        self._show()

    def point(self, point: Point) -> None:
        """Show a point of the history."""
        self._view.add(point)
        self._line(self._told(point), point.evaluations)

    def measuring(self, spec: RunSpec) -> None:
        """Show that the curvature is measured."""
        self._spec = spec
        self._view.occupied(spec, _MEASURING)
        self._show()
        self._line(_MEASURING, spec.budget)

    def _show(self) -> None:
        """Begin the picture: not before there is something, since ranks that show nothing share the terminal."""
        if self._console.is_terminal:
            self._live.start()

    def _line(self, at: str, evaluations: int) -> None:
        """Say where the run is, if this is no terminal and it is time."""
        if not self._console.is_terminal and self._spec is not None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            self.note(f"{self._spec.name}: {evaluations} of {self._spec.budget} evaluations, {at}")

    def _told(self, point: Point) -> str:
        trace = trace_text(point, ascii_only=self._console.options.ascii_only)
        at = f"loss {point.train_loss:.4f}, validation accuracy {point.validation_accuracy:.1%}"
        return f"{at}, live trace {trace}" if trace else at
