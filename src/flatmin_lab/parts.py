"""Progress of a measurement on standard error: one bar for each part, or an occasional line where nothing can move."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_SECONDS_BETWEEN_LINES = 10.0


class PartBars:
    """Shows how far each part of a measurement is.

    Args:
        console: Where; a console on standard error, so that standard output holds results alone.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[at]}")
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, part: str, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` steps are done; None where nobody knows how many there will be."""
        at = f"{done} products" if total is None else f"{done}/{total}"
        if self._console.is_terminal:
            if part not in self._tasks:
                self._tasks[part] = self._progress.add_task(part, total=total, at="")
            self._progress.update(self._tasks[part], completed=done, total=total, at="done" if done == total else at)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            self._console.print(f"{part}: {at}", markup=False, highlight=False, soft_wrap=True)
