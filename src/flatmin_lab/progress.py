"""Live progress on standard error: what is done, what each worker is at, and how long it will take."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from flatmin_lab.plan import Planned
from flatmin_lab.sweep import Finished, Lost, Progressed, Started

if TYPE_CHECKING:
    from flatmin_lab.job import Job
    from flatmin_lab.spec import Point
    from flatmin_lab.sweep import Event

_SECONDS_BETWEEN_LINES = 10.0
_MEASURING = "measuring curvature"


class Display:
    """Shows events: bars on a terminal, an occasional line anywhere else.

    Args:
        console: Where; a console on standard error, so that standard output holds results alone.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._clock = _Clock()
        self._bars = _Bars(console) if console.is_terminal else None
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.progress.stop()

    def note(self, message: str) -> None:
        """Print one line above whatever moves."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, event: Event | Planned) -> None:
        """Show an event."""
        self._clock.count(event)
        if isinstance(event, Lost):
            self.note(f"{event.message} The run is begun again.")
        if isinstance(event, Finished) and event.outcome.result.status == "diverged":
            self.note(f"Diverged: {event.outcome.result.message}")
        if self._bars:
            self._bars.show(event, self._clock)
        elif isinstance(event, Progressed | Finished) and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            at = _at(event.point) if isinstance(event, Progressed) else "done"
            self.note(f"{self._clock}   {event.job.spec.name}: {at}")


class _Clock:
    """Runs done and time left, from the weight of the jobs done since the start and of those to come."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._first_point: float | None = None  # workers take seconds to start, which say nothing about a run
        self.runs_done = self.runs_total = 0
        self._work_done = self._work_left = 0.0
        self._partly: dict[Job, float] = {}

    def count(self, event: Event | Planned) -> None:
        if self._first_point is None and isinstance(event, Progressed | Finished):
            self._first_point = time.monotonic()
        if isinstance(event, Planned):
            self.runs_done, self.runs_total = event.runs_done, event.runs_total
            self._work_left = event.work_left
        elif isinstance(event, Started | Lost):
            self._partly[event.job] = 0.0
        elif isinstance(event, Progressed):
            share = event.point.evaluations / event.job.spec.budget
            self._partly[event.job] = share * event.job.TRAINING
        else:
            self._partly.pop(event.job, None)
            self._work_done += event.job.weight
            self._work_left -= event.job.weight
            self.runs_done += event.job.stored is None

    @property
    def left(self) -> str:
        """Time left, as text; unknown before half a run is done."""
        partly = sum(self._partly.values())
        done = self._work_done + partly
        if self._first_point is None or done < 0.5:
            return "time left unknown"
        seconds = (time.monotonic() - self._first_point) / done * max(self._work_left - partly, 0.0)
        return f"about {_clock_time(seconds)} left"

    def __str__(self) -> str:
        elapsed = _clock_time(time.monotonic() - self._begin)
        return f"{self.runs_done}/{self.runs_total} runs, {elapsed} elapsed, {self.left}"


class _Bars:
    """The moving picture: one bar for everything, one for each job at work."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[at]}"),
            console=console,
            transient=True,
        )
        self._all = self.progress.add_task("runs", total=None, at="")
        self._jobs: dict[Job, TaskID] = {}

    def show(self, event: Event | Planned, clock: _Clock) -> None:
        self.progress.update(self._all, completed=clock.runs_done, total=clock.runs_total, at=clock.left)
        if isinstance(event, Started):
            total = event.job.spec.budget
            done, at = (0, "") if event.job.stored is None else (total, _MEASURING)
            self._jobs[event.job] = self.progress.add_task(event.job.spec.name, total=total, completed=done, at=at)
        elif isinstance(event, Progressed):
            done = event.point.evaluations
            at = _MEASURING if event.job.measure and done == event.job.spec.budget else _at(event.point)
            self.progress.update(self._jobs[event.job], completed=done, at=at)
        elif isinstance(event, Finished | Lost):
            self.progress.remove_task(self._jobs.pop(event.job))


def _at(point: Point) -> str:
    return f"loss {point.train_loss:.4f}, validation accuracy {point.validation_accuracy:.1%}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
