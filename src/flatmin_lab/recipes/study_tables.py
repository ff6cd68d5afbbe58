"""Studies as tables: rows with their means, intervals and paired differences; and all their runs as a series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flatmin_lab.recipes.outcome import Cell, Table
from flatmin_lab.report.summary import quantity
from flatmin_lab.report.text import METRICS, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flatmin_lab.recipes.studies import Found, Row

QUANTITIES = METRICS | {
    "validation_accuracy": Metric("Validation accuracy", "%", 100.0, 1),
    "train_accuracy": Metric("Train accuracy", "%", 100.0, 1),
}
"""How metrics are written: those of reports, and further ones of recipes."""

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
    runs, value = found.runs(row), found.value(row)
    interval = quantity(runs, metric).interval
    numbers: tuple[Cell, ...] = ("",) * 3
    if interval is not None:
        numbers = tuple(scaled(metric, x) for x in (interval.mean, interval.low, interval.high))
    compared: tuple[Cell, ...] = ("", "", "")
    if row.against:
        difference = found.difference(row.label, row.against, metric)
        compared = (row.against, "", "")
        if difference.interval is not None and difference.test is not None:
            compared = (row.against, scaled(metric, difference.interval.mean), difference.test.p)
    return ("" if value is None else value, *numbers, *compared)


def factor_of(metric: str) -> float:
    """What a metric is multiplied by for people: 100 for accuracies, which are shown in percent."""
    return QUANTITIES[metric].factor if metric in QUANTITIES else 1.0


def scaled(metric: str, value: float) -> float:
    """A value for people. Accuracies are quotients in single precision: from the fifth decimal on they are rounding."""
    factor = factor_of(metric)
    return value if factor == 1 else round(factor * value, 4)


def title_of(metric: str) -> str:
    """Its name with its unit, for axes."""
    return QUANTITIES[metric].title if metric in QUANTITIES else metric.replace("_", " ")


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
