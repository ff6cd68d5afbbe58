"""Reproductions that are made of runs: rows over paired seeds, each a method in a setting, on tasks of several sizes.

The runs are those of ``flatmin compare``, with its budgets, its tuning on validation data and its paired seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.checks import choice
from flatmin_lab.compare import check, compare
from flatmin_lab.errors import LabError
from flatmin_lab.plan import values
from flatmin_lab.recipes.counting import Counting
from flatmin_lab.report.summary import Difference, paired_difference, quantity
from flatmin_lab.spec import Arm, Comparison, RunResult, Study
from flatmin_lab.store import Store
from flatmin_lab.sweep import num_cores
from flatmin_lab.tasks import TASKS, task

if TYPE_CHECKING:
    from pathlib import Path

    from flatmin_lab.recipes.outcome import Watch


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
        LabError: A task is not part of this version, said before anything starts too; or a run failed for good.
    """
    chosen = require(scales, size, tasks)
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


def require(scales: Mapping[str, Sequence[Scale]], size: str, tasks: Sequence[str] = ()) -> list[Scale]:
    """Say what the tasks of a size lack, before anything starts.

    Args:
        scales: The tasks of each size.
        size: A key of ``scales``.
        tasks: Only these of the size's tasks; empty for all.

    Returns:
        The tasks that are asked for, as the size has them.

    Raises:
        ArgumentError: There is no such size, or the size has no such task.
        DataError: What a task needs under the data root is not there.
        LabError: A task is not part of this version.
    """
    listed = scales[choice("size", size, scales)]
    for name in tasks:
        choice("task", name, [scale.task for scale in listed])
    chosen = [scale for scale in listed if not tasks or scale.task in tasks]
    for scale in chosen:
        if scale.task not in TASKS:
            raise LabError(
                f"size is {size!r}, which runs on {scale.task}, but this version has no task of that name. Take a "
                "version that has it, or a smaller size: --size small."
            )
        task(scale.task).require()
    return chosen
