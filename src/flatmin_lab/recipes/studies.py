"""Reproductions that are made of runs: rows over paired seeds, each a method in a setting, on tasks of several sizes.

The runs are those of ``flatmin compare``, with its budgets, its tuning on validation data and its paired seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatmin.checks import choice
from flatmin_lab.compare import check, compare
from flatmin_lab.plan import Planned, values
from flatmin_lab.recipes.outcome import Cell, Table
from flatmin_lab.report.summary import Difference, paired_difference, quantity
from flatmin_lab.report.text import METRICS
from flatmin_lab.spec import Arm, Comparison, RunResult, Study
from flatmin_lab.store import Store
from flatmin_lab.sweep import Finished, num_cores
from flatmin_lab.tasks import task

if TYPE_CHECKING:
    from pathlib import Path

    from flatmin_lab.recipes.outcome import Watch
    from flatmin_lab.sweep import Event


@dataclass(frozen=True)
class Scale:
    """How much is run on one task.

    Attributes:
        task: Of ``flatmin compare``.
        seeds: Paired seeds.
        budget: Gradient evaluations of a run, where a row does not say otherwise.
    """

    task: str
    seeds: int
    budget: int


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        label: For people; it tells the rows of a task apart.
        arm: What is run.
        against: Label of the row that it is compared with, seed by seed; empty for none.
    """

    label: str
    arm: Arm
    against: str = ""


@dataclass(frozen=True)
class Found:
    """What was found on one task.

    Attributes:
        scale: How much was run.
        rows: What was asked for.
        comparison: Everything that was run.
    """

    scale: Scale
    rows: tuple[Row, ...]
    comparison: Comparison

    def runs(self, row: Row) -> tuple[RunResult, ...]:
        """The final runs of a row, by seed."""
        value = self.value(row)
        arm = row.arm
        wanted = (arm.task, arm.method, arm.budget, arm.changes, value)
        specs = ((r, (r.spec.task, r.spec.method, r.spec.budget, r.spec.changes, r.spec.value)) for r in self.results)
        return tuple(sorted((r for r, found in specs if found == wanted), key=lambda r: r.spec.seed))

    @property
    def results(self) -> tuple[RunResult, ...]:
        """All final runs."""
        return self.comparison.results

    def value(self, row: Row) -> float | None:
        """The value of a row's sigma, rho or alpha: given, or chosen on validation data."""
        grid = values(row.arm)
        if len(grid) < 2:
            return grid[0] if grid else None
        key = (row.arm.task, row.arm.method, row.arm.budget, row.arm.changes, grid)
        (found,) = {
            s.chosen for s in self.comparison.selections if (s.task, s.method, s.budget, s.changes, s.grid) == key
        }
        return found

    def row(self, label: str) -> Row:
        """The row with this label."""
        (found,) = (row for row in self.rows if row.label == label)
        return found

    def mean(self, label: str, metric: str) -> float:
        """Mean of a metric over the seeds of a row, in the metric's own unit; NaN where it is not known."""
        interval = quantity(self.runs(self.row(label)), metric).interval
        return float("nan") if interval is None else interval.mean

    def difference(self, label: str, against: str, metric: str) -> Difference:
        """Paired difference of two rows, the first minus the second."""
        return paired_difference(self.runs(self.row(label)), self.runs(self.row(against)), metric)


def study(
    scales: Mapping[str, Sequence[Scale]],
    rows: Callable[[Scale], Iterable[Row]],
    *,
    size: str,
    seed: int,
    watch: Watch,
    folder: Path,
    tasks: Sequence[str] = (),
) -> list[Found]:
    """Run what is not yet stored.

    Args:
        scales: The tasks of each size.
        rows: What is run on a task.
        size: A key of ``scales``.
        seed: The first of the paired seeds.
        watch: Told of the progress.
        folder: Where finished runs are kept.
        tasks: Only these of the size's tasks; empty for all.

    Returns:
        What was found on each task.

    Raises:
        ArgumentError: There is no such size, or the size has no such task.
        DataError: The data are not there; said before anything starts.
        LabError: A run failed for good.
    """
    require(scales, size)
    chosen = list(scales[size])
    for name in tasks:
        choice("task", name, [scale.task for scale in chosen])
    chosen = [scale for scale in chosen if not tasks or scale.task in tasks]
    asked = []
    for scale in chosen:
        lines = tuple(rows(scale))
        arms = tuple(dict.fromkeys(line.arm for line in lines))
        asked.append((scale, lines, Study(arms=arms, seeds=scale.seeds, first_seed=seed)))
    workers = 1 if size == "toy" else num_cores()  # it ends before other processes have begun
    for _, _, each in asked:
        check(each, workers)
    with Store(folder) as store:
        return [
            Found(scale, lines, compare(each, store, workers=workers, watch=Counting(watch, scale.task)))
            for scale, lines, each in asked
        ]


def require(scales: Mapping[str, Sequence[Scale]], size: str) -> None:
    """Say what the tasks of a size lack, before anything starts.

    Raises:
        ArgumentError: There is no such size, or no such task.
        DataError: What a task needs under the data root is not there.
    """
    for scale in scales[choice("size", size, scales)]:
        task(scale.task).require()


COLUMNS = ("value", "here", "95 % from", "to", "over", "difference", "p")
"""The columns that `cells` fills."""


def metric_table(
    found: Found,
    metric: str,
    *,
    name: str,
    caption: str,
    printed: Mapping[str, tuple[Cell, ...]] | None = None,
    heads: tuple[str, ...] = (),
) -> Table:
    """Make the table of one metric, a line for each row, the paper's numbers at its end.

    Args:
        found: What was found on a task.
        metric: A field of ``RunResult``.
        name: Of the table.
        caption: What is shown; how it was computed is added.
        printed: A row's label to the paper's numbers for it.
        heads: Of the columns of ``printed``.
    """
    printed = printed or {}
    unknown = ("",) * len(heads)
    lines = [(row.label, *cells(found, row, metric), *printed.get(row.label, unknown)) for row in found.rows]
    how = f"On {found.scale.task}: means over {found.scale.seeds} seeds, Student intervals, exact sign-flip tests."
    return Table(name, ("", *COLUMNS, *heads), tuple(lines), f"{caption} {how}")


def cells(found: Found, row: Row, metric: str) -> tuple[Cell, ...]:
    """The numbers of one row: its value, mean and interval, and the paired difference to what it is compared with."""
    runs, factor, value = found.runs(row), factor_of(metric), found.value(row)
    interval = quantity(runs, metric).interval
    numbers: tuple[Cell, ...] = ("",) * 3
    if interval is not None:
        numbers = tuple(factor * x for x in (interval.mean, interval.low, interval.high))
    compared: tuple[Cell, ...] = ("", "", "")
    if row.against:
        difference = found.difference(row.label, row.against, metric)
        compared = (row.against, "", "")
        if difference.interval is not None and difference.test is not None:
            compared = (row.against, factor * difference.interval.mean, difference.test.p)
    return ("" if value is None else value, *numbers, *compared)


def factor_of(metric: str) -> float:
    """What a metric is multiplied by for people: 100 for accuracies, which are shown in percent."""
    return METRICS[metric].factor if metric in METRICS else 1.0


def runs_series(found: Iterable[Found]) -> dict[str, np.ndarray]:
    """Every final run as a line of numbers, for those who want to draw or test for themselves."""
    listed = [(one, row, run) for one in found for row in one.rows for run in one.runs(row)]
    unknown = float("nan")
    fields = ("test_accuracy", "test_loss", "train_accuracy", "train_loss", "validation_accuracy", "trace")
    return {
        "task": np.array([one.scale.task for one, _, _ in listed]),
        "row": np.array([row.label for _, row, _ in listed]),
        "value": np.array([unknown if run.spec.value is None else run.spec.value for _, _, run in listed]),
        "seed": np.array([run.spec.seed for _, _, run in listed]),
        "gradient evaluations": np.array([run.gradient_evaluations for _, _, run in listed]),
        **{
            name: np.array([unknown if (x := getattr(run, name)) is None else x for _, _, run in listed])
            for name in (*fields, "trace_stderr", "top_eigenvalue", "authors_lambda", "seconds")
        },
    }


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
