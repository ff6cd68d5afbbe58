"""Live progress on standard error: what is done, what the workers are at, and how long it will take."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from flatmin_lab.plan import Planned
from flatmin_lab.sweep import Finished, Lost, Progressed, Started

if TYPE_CHECKING:
    from flatmin_lab.spec import Point, RunSpec
    from flatmin_lab.sweep import Event

_SECONDS_BETWEEN_LINES = 10.0
_MEASURING = "measuring curvature"

_ROWS = 12  # bars of runs on a high screen; a lower one has fewer
_ROWS_LEFT_FREE = 6  # for the bar of everything and a few of the lines above

_NOTES = 10  # about runs that diverged; further ones are counted


class Display:
    """Shows events: bars on a terminal, an occasional line anywhere else. A thousand runs take no more room than ten.

    Args:
        console: Where; a console on standard error, so that standard output holds results alone.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._tally = Tally()
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
        self._tally.count(event)
        if isinstance(event, Lost):
            self.note(f"{event.message} The run is begun again.")
        if isinstance(event, Finished) and event.outcome.result.status == "diverged":
            self._note_diverged(event.outcome.result.message)
        if self._bars:
            self._bars.show(event, self._tally)
        elif isinstance(event, Progressed | Finished) and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            at = _at(event.point) if isinstance(event, Progressed) else "done"
            self.note(f"{self._tally}   {event.job.spec.name}: {at}")

    def _note_diverged(self, message: str) -> None:
        if self._tally.diverged <= _NOTES:
            self.note(f"Diverged: {message}")
        if self._tally.diverged == _NOTES:
            self.note("Further runs that diverge are counted, and not named.")


class Tally:
    """Runs done, at work and gone wrong, and the time left from the weight of the jobs done and of those to come.

    Attributes:
        runs_done: Runs that are stored, those of earlier calls included.
        runs_total: Runs that there are to be.
        diverged: Runs that reached NaN or infinity since the start.
        lost: How often a worker was lost.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._first_point: float | None = None  # workers take seconds to start, which say nothing about a run
        self.runs_done = self.runs_total = 0
        self.diverged = self.lost = 0
        self._work_done = self._work_left = 0.0
        self._partly: dict[RunSpec, float] = {}

    def count(self, event: Event | Planned) -> None:
        """Take account of an event."""
        if self._first_point is None and isinstance(event, Progressed | Finished):
            self._first_point = time.monotonic()
        if isinstance(event, Planned):
            self.runs_done, self.runs_total = event.runs_done, event.runs_total
            self._work_left = event.work_left
            return
        spec = event.job.spec
        if isinstance(event, Started):
            self._partly[spec] = 0.0
        elif isinstance(event, Progressed):
            self._partly[spec] = event.point.evaluations / spec.budget * event.job.TRAINING
        else:
            self._partly.pop(spec, None)
            if isinstance(event, Lost):
                self.lost += 1
            else:
                self._count_finished(event)

    def _count_finished(self, event: Finished) -> None:
        self._work_done += event.job.weight
        self._work_left -= event.job.weight
        self.runs_done += event.job.stored is None
        self.diverged += event.outcome.result.status == "diverged"

    @property
    def running(self) -> int:
        """Jobs at work."""
        return len(self._partly)

    @property
    def left(self) -> str:
        """Time left, as text; unknown before half a run is done."""
        partly = sum(self._partly.values())
        done = self._work_done + partly
        if self._first_point is None or done < 0.5:
            return "time left unknown"
        seconds = (time.monotonic() - self._first_point) / done * max(self._work_left - partly, 0.0)
        return f"about {_clock_time(seconds)} left"

    @property
    def states(self) -> str:
        """How many runs are at work and how many went wrong, as text."""
        wrong = ((self.diverged, "diverged"), (self.lost, "lost and begun again"))
        return ", ".join([f"{self.running} running", *(f"{number} {what}" for number, what in wrong if number)])

    def __str__(self) -> str:
        elapsed = _clock_time(time.monotonic() - self._begin)
        return f"{self.runs_done}/{self.runs_total} runs, {self.states}, {elapsed} elapsed, {self.left}"


class _Bars:
    """The moving picture: one bar for everything, one for each job at work as far as the screen is high."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[at]}"),
            console=console,
            transient=True,
        )
        self._rows = max(1, min(_ROWS, console.height - _ROWS_LEFT_FREE))
        self._all = self.progress.add_task("runs", total=None, at="")
        self._shown: dict[RunSpec, TaskID] = {}
        self._hidden: dict[RunSpec, tuple[int, str]] = {}  # what their bars would show

    def show(self, event: Event | Planned, tally: Tally) -> None:
        if isinstance(event, Finished | Lost):
            self._remove(event.job.spec)
        elif not isinstance(event, Planned):
            self._move(event.job.spec, *_position(event))
        more = f", {len(self._hidden)} of them not shown" if self._hidden else ""
        self.progress.update(
            self._all, completed=tally.runs_done, total=tally.runs_total, at=f"{tally.left}, {tally.states}{more}"
        )

    def _move(self, spec: RunSpec, done: int, at: str) -> None:
        if spec in self._shown:
            self.progress.update(self._shown[spec], completed=done, at=at)
        elif len(self._shown) < self._rows:
            self._shown[spec] = self.progress.add_task(spec.name, total=spec.budget, completed=done, at=at)
        else:
            self._hidden[spec] = done, at

    def _remove(self, spec: RunSpec) -> None:
        self._hidden.pop(spec, None)
        if spec in self._shown:
            self.progress.remove_task(self._shown.pop(spec))
            if self._hidden:
                longest = next(iter(self._hidden))
                self._move(longest, *self._hidden.pop(longest))


def _position(event: Started | Progressed) -> tuple[int, str]:
    """Gradient evaluations done, and what to say beside them."""
    job = event.job
    if isinstance(event, Started):
        return (0, "") if job.stored is None else (job.spec.budget, _MEASURING)
    done = event.point.evaluations
    return done, _MEASURING if job.measure and done == job.spec.budget else _at(event.point)


def _at(point: Point) -> str:
    return f"loss {point.train_loss:.4f}, validation accuracy {point.validation_accuracy:.1%}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
