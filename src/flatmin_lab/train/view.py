"""The picture of a run on a terminal: how far it is, how well it does, and where its loss curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from flatmin.curvature.results import plus_minus

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from flatmin_lab.spec import Point, RunSpec

_PICTURE = 24  # cells of a sparkline, of the bar of a whole share, and of the bar of the run
_LAYERS = 5  # of the largest shares
_NAMES = 17, 40  # cells for their names, on narrow terminals and wide ones


@dataclass(frozen=True)
class Signs:
    """What pictures are made of.

    Attributes:
        levels: From the lowest to the highest.
        full: A cell of a bar.
        empty: One that is not reached.
        plus_minus: Before a standard error.
        more: In the place of what has no room.
    """

    levels: str
    full: str
    empty: str
    plus_minus: str
    more: str


BLOCKS = Signs("▁▂▃▄▅▆▇█", "█", "░", "±", "…")
ASCII = Signs("_.:-=+*#", "#", ".", "+-", "..")
"""For terminals of another encoding than UTF."""


class View:
    """A bar, and below it the latest point of the history with the live curvature of methods that have it.

    Numbers keep their room on a narrow terminal, and pictures beside them give way.

    Args:
        console: Where it is shown.
    """

    def __init__(self, console: Console) -> None:
        bar = BarColumn(bar_width=None, table_column=Column(max_width=_PICTURE))
        done, at = (TextColumn(f"{{task.fields[{n}]}}", markup=False, table_column=Column()) for n in ("done", "at"))
        self._progress = Progress(bar, done, at, TimeRemainingColumn(), console=console)
        self._bar = self._progress.add_task("", total=None, done="", at="")
        self._name = ""
        self._points: list[Point] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What is drawn, each time anew."""
        if not self._name:
            return
        signs = ASCII if options.ascii_only else BLOCKS
        yield Text(_shortened(self._name, options.max_width, signs))
        yield self._progress
        if self._points:
            yield _table(self._points, options.max_width, signs)

    def begin(self, spec: RunSpec, evaluations: int, past: Iterable[Point] = ()) -> None:
        """Show that a run begins or goes on, with the history so far."""
        self._name, self._points = spec.name, list(past)
        self._progress.update(self._bar, total=spec.budget, at="")
        self._move(evaluations, spec.budget)

    def add(self, point: Point) -> None:
        """Show a point of the history."""
        self._points.append(point)
        self._move(point.evaluations, self._progress.tasks[0].total)

    def occupied(self, spec: RunSpec, at: str) -> None:
        """Show that a run is at something that nobody knows the end of."""
        self._name = spec.name
        self._progress.update(self._bar, at=at)
        self._move(spec.budget, spec.budget)
        self._progress.tasks[0].total = None  # a bar that moves, and no time left

    def _move(self, evaluations: int, budget: float | None) -> None:
        done = f"{evaluations}/{budget:.0f} evaluations" if budget is not None else ""
        self._progress.update(self._bar, completed=evaluations, done=done)


def trace_text(point: Point, *, ascii_only: bool = False) -> str:
    """Write the live trace of a point that has one, with its standard error if it is known."""
    value, stderr = point.live_trace, point.live_trace_stderr
    if value is None:
        return ""
    text = f"{value:.4g}" if stderr is None else plus_minus(value, stderr)
    return text.replace("±", ASCII.plus_minus) if ascii_only else text


def sparkline(values: Sequence[float | None], cells: int = _PICTURE, levels: str = BLOCKS.levels) -> str:
    """Draw the latest of ``values``, from the lowest to the highest of them; what is not known is a space.

    Example:
        >>> sparkline([0.0, 1.0, None, 7.0])
        '▁▂ █'
    """
    latest = [None if v is None or not math.isfinite(v) else v for v in values[max(len(values) - cells, 0) :]]
    known = [value for value in latest if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    steps = (len(levels) - 1) / span if span and math.isfinite(span) else 0.0
    return "".join(" " if value is None else levels[round((value - low) * steps)] for value in latest)


def _table(points: Sequence[Point], width: int, signs: Signs) -> Table:
    """The numbers, with pictures beside them as far as there is room."""
    series, shares = _series(points, signs), _largest(points[-1])
    values = max(map(len, [value for _, value, _ in series] + [f"{share:6.1%}" for _, share in shares]))
    names = min(max(width - _PICTURE - values - 6, _NAMES[0]), _NAMES[1])  # 2 before a name, 2 between columns
    layers = [(f"  {_shortened(name, names, signs)}", share) for name, share in shares]
    room = min(width - max(len(label) for label, *_ in series + layers) - values - 4, _PICTURE)
    if room < _PICTURE // 3:
        room = 0
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for label, value, numbers in series:
        table.add_row(label, value, sparkline(numbers, room, signs.levels))
    if layers:
        everything = len(points[-1].live_shares or ())
        table.add_row("share of layers", f"{len(layers)} of {everything}" if everything > len(layers) else "")
    for label, share in layers:
        table.add_row(label, f"{share:6.1%}", _bar(share, room, signs))
    return table


def _series(points: Sequence[Point], signs: Signs) -> list[tuple[str, str, list[float | None]]]:
    """What there is of the latest point, as text, and in the history."""
    last = points[-1]
    accuracy = [point.validation_accuracy for point in points]
    found: list[tuple[str, str, list[float | None]]] = [
        ("loss", f"{last.train_loss:.4f}", [point.train_loss for point in points]),
        ("validation accuracy", f"{last.validation_accuracy:.1%}", [*accuracy]),
    ]
    if last.live_trace is not None:
        told = trace_text(last, ascii_only=signs is ASCII)
        found.append(("live trace", told, [point.live_trace for point in points]))
    if last.noise_to_signal is not None:
        found.append(("noise to signal", f"{last.noise_to_signal:.2f}", [point.noise_to_signal for point in points]))
    return found


def _largest(point: Point) -> list[tuple[str, float]]:
    return sorted((point.live_shares or {}).items(), key=lambda item: -abs(item[1]))[:_LAYERS]


def _bar(share: float, cells: int, signs: Signs) -> Text:
    """A bar for a share; one that is below zero or above one, as noisy ones may be, is at its end."""
    filled = round(cells * min(max(share, 0.0), 1.0)) if math.isfinite(share) else 0
    return Text.assemble((signs.full * filled, "cyan"), (signs.empty * (cells - filled), "dim"))


def _shortened(name: str, cells: int, signs: Signs) -> str:
    """The end of a name, which tells layers and runs apart, if there is no room for all of it."""
    return name if len(name) <= cells else signs.more + name[len(name) - max(cells - len(signs.more), 1) :]
