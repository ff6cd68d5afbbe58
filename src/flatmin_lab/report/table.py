"""The results as tables: tidy data frames, and a console table that fits the terminal it is printed on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from flatmin_lab.recipes.outcome import Table as Plain
from flatmin_lab.recipes.outcome import written
from flatmin_lab.report import text
from flatmin_lab.report.findings import legend
from flatmin_lab.report.plain import across_table, differences_table
from flatmin_lab.report.summary import COMPARED, METRICS, REFERENCE, Verdict, hyperparameter, summarise

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from flatmin_lab.report.summary import MethodSummary
    from flatmin_lab.spec import Comparison
    from flatmin_lab.statistics import Interval


def results_frame(comparison: Comparison) -> pd.DataFrame:
    """The final runs as tidy data: one row a run, one column a number.

    Args:
        comparison: What was run.

    Returns:
        Columns ``task, method, hyperparameter, value, seed, budget, device, changes`` and every scalar of `RunResult`;
        missing measurements are NaN.
    """
    rows = []
    for r in comparison.results:
        numbers = r.model_dump(exclude={"spec", "history", "environment"})
        rows.append(
            {
                "task": r.spec.task,
                "method": r.spec.method,
                "hyperparameter": hyperparameter(r.spec.method),
                **r.spec.model_dump(include={"value", "seed", "budget", "device"}),
                "changes": r.spec.changes.name,
                **numbers,
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["task", "method", "hyperparameter", "value", "seed"])


def summary_frame(comparison: Comparison) -> pd.DataFrame:
    """The comparison in numbers: one row for each task and method.

    Args:
        comparison: What was run.

    Returns:
        For each metric ``<metric>_mean``, ``_low``, ``_high`` (95 % Student interval over seeds) and ``_num_diverged``;
        ``trace_estimator_stderr``; and for each compared metric the paired difference to the reference:
        ``<metric>_difference_mean``, ``_low``, ``_high`` (Student), ``_bca_low``, ``_bca_high``, ``_p`` (exact
        sign-flip test), ``_reachable_p``, ``_p_holm`` (corrected for ``_num_compared`` tests), ``_num_pairs`` and
        ``_verdict``; ``<metric>_improvement_mean``, ``_low``, ``_high`` (probability of being better). What is not
        known is NaN.
    """
    return pd.DataFrame([_flat(summary) for summary in summarise(comparison)])


def _flat(summary: MethodSummary) -> dict[str, object]:
    row: dict[str, object] = {
        "task": summary.task,
        "method": summary.method,
        "hyperparameter": summary.hyperparameter,
        "value": summary.value,
        "budget": summary.arm.budget,
        "changes": summary.arm.changes.name,
        "num_seeds": len(summary.results),
    }
    for name in METRICS:
        quantity = summary.quantities[name]
        row |= _ends(name, quantity.interval) | {f"{name}_num_diverged": quantity.num_diverged}
    row["trace_estimator_stderr"] = _or_nan(summary.quantities["trace"].measurement_stderr)
    for name in COMPARED:
        difference = summary.differences.get(name)
        prefix, test = f"{name}_difference", difference.test if difference else None
        row |= _ends(prefix, difference.interval if difference else None)
        row |= _ends(f"{prefix}_bca", difference.bca if difference else None)
        row |= _ends(f"{name}_improvement", difference.improvement if difference else None)
        row |= {
            f"{prefix}_p": test.p if test else math.nan,
            f"{prefix}_reachable_p": test.reachable if test else math.nan,
            f"{prefix}_p_holm": difference.adjusted_p if difference else math.nan,
            f"{prefix}_num_compared": difference.num_compared if difference and test else 0,
            f"{prefix}_num_pairs": test.num_seeds if test else 0,
            f"{prefix}_verdict": str(difference.verdict) if difference else "reference",
        }
    return row


def _ends(prefix: str, interval: Interval | None) -> dict[str, float]:
    names = ("mean", "low", "high")
    return {f"{prefix}_{name}": getattr(interval, name) if interval else math.nan for name in names}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def console_table(comparison: Comparison) -> ConsoleTable:
    """The comparison for a terminal.

    Args:
        comparison: What was run.

    Returns:
        A rich renderable: one table a task where the terminal is wide enough, two stacked ones where it is not.

    Example:
        >>> from flatmin_lab.spec import Comparison, Study
        >>> spec = Study.crossed(tasks=("digits",), methods=("sgd",), seeds=2, budget=10)
        >>> import rich
        >>> rich.print(console_table(Comparison(spec=spec, selections=(), results=())))
        No run has finished yet.
    """
    return ConsoleTable(comparison)


class ConsoleTable:
    """A comparison that draws itself on a rich console."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._comparison.results:
            yield Text("No run has finished yet.")
            return
        summaries = summarise(self._comparison)
        by_task = {task: [s for s in summaries if s.task == task] for task in self._comparison.spec.tasks}
        wide = {task: _table(rows, (*_QUALITY, *_FLATNESS, *_COST)) for task, rows in by_task.items()}
        unlimited = options.update(width=_ANY_WIDTH)
        fits = all(Measurement.get(console, unlimited, t).maximum <= options.max_width for t in wide.values())
        for task, rows in by_task.items():
            yield Text(f"\n{task}\n", style="bold")
            yield from [wide[task]] if fits else [_table(rows, (*_QUALITY, *_COST)), Text(), _table(rows, _FLATNESS)]
            for metric in COMPARED:
                for table in differences_table(task, rows, metric):
                    yield Text(f"\nDifference in {text.DIFFERENCES[metric].title}\n", style="dim")
                    yield rich_table(table, options.max_width)
        for table in across_table(summaries):
            yield Text("\nAll tasks\n", style="bold")
            yield rich_table(table, options.max_width)
        yield Text(f"\n{legend(self._comparison)}", style="dim")


_ANY_WIDTH = 1000  # measured against this, a table tells its natural width
_QUALITY = ("test_accuracy", "difference", "p")
_FLATNESS = ("test_loss", "train_loss", "trace", "top_eigenvalue")
_COST = ("seconds", "gradient_evaluations")
_HEADS = {"difference": f"− {text.method_label(REFERENCE)}\npoints", "p": "p"}


def _table(rows: list[MethodSummary], columns: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("Method", no_wrap=True)
    for name in columns:
        head = _HEADS.get(name) or _two_lines(text.METRICS[name])
        table.add_column(Text(head, justify="right"), justify="right", no_wrap=True)
    for summary in rows:
        label = Text.assemble((text.method_label(summary.method), "bold"), "\n", (text.setting(summary), "dim"))
        table.add_row(label, *(_cell(summary, name) for name in columns))
    return table


def _two_lines(metric: text.Metric) -> str:
    first, _, second = metric.label.partition(" ")
    return f"{first}\n{second}{' ' if second and metric.unit else ''}{metric.unit}"


def _cell(summary: MethodSummary, name: str) -> Text:
    if name in METRICS:
        return _stacked(*text.quantity_texts(summary.quantities[name], name))
    difference = summary.differences.get("test_accuracy")
    if difference is None:
        return Text("reference" if name == "difference" else "")
    if name == "p":
        value, small = text.p_texts(difference)
        first, _, rest = value.rpartition(" ")  # "not enough seeds" on two lines
        return Text(f"{first}\n{rest}") if difference.verdict is Verdict.TOO_FEW_SEEDS else _stacked(value, small)
    return _stacked(*text.difference_texts(difference))


def rich_table(table: Plain, width: int) -> Table:
    """A table of text for a terminal: where it is wider, intervals go below their values and cells wrap at blanks."""
    rows = [[written(cell) for cell in row] for row in table.rows]
    natural = [max(map(len, column)) for column in zip(table.columns, *rows, strict=True)]
    if sum(natural) + len(natural) > width:
        rows = [[cell.replace(" [", "\n[") for cell in row] for row in rows]
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), show_edge=False)
    for i, head in enumerate(table.columns):
        shown.add_column(Text(head), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def _stacked(value: str, small_print: str) -> Text:
    return Text.assemble(value, "\n", (small_print, "dim"))
