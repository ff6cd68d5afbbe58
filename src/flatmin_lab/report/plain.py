"""The tables of a comparison as text, each made in one place for the page, the console, Markdown and LaTeX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.recipes.outcome import Table
from flatmin_lab.report import text
from flatmin_lab.report.across import across_tasks
from flatmin_lab.report.findings import legend
from flatmin_lab.report.summary import COMPARED, METRICS, REFERENCE, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.report.summary import Difference, MethodSummary
    from flatmin_lab.spec import Comparison


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return everything a comparison shows in numbers: results and differences by task, and all tasks together."""
    rows = summarise(comparison)
    tables = []
    for task in comparison.spec.tasks:
        mine = [row for row in rows if row.task == task]
        tables.append(results_table(task, mine, legend(comparison)))
        tables += [table for metric in COMPARED for table in differences_table(task, mine, metric)]
    return tables + across_table(rows)


def results_table(task: str, rows: Sequence[MethodSummary], caption: str = "") -> Table:
    """Return the metrics of every row, means with their intervals."""
    lines = [
        (label, *(" ".join(filter(None, text.quantity_texts(row.quantities[name], name))) for name in METRICS))
        for label, row in zip(_full_labels(rows), rows, strict=True)
    ]
    return Table(f"{task}-results", ("Method", *(text.METRICS[n].title for n in METRICS)), tuple(lines), caption)


def differences_table(task: str, rows: Sequence[MethodSummary], metric: str) -> list[Table]:
    """Return the paired differences to the reference in one metric; no table where there are none."""
    named = zip(text.labels(rows), rows, strict=True)
    lines = [(label, *_difference(row.differences[metric])) for label, row in named if metric in row.differences]
    how = text.DIFFERENCES[metric]
    heads = ("Method", "Difference, Student 95 %", "BCa 95 %", "p", "p, Holm", "P(better)", "Shown")
    caption = (
        f"Differences in {how.title} to {text.method_label(REFERENCE)} of the same seed. BCa: bootstrap interval, too "
        "short for few seeds. p: exact sign-flip test; Holm: corrected for the rows of this table. P(better): "
        "probability that a run is better than one of the reference, ties counted half, with its bootstrap interval "
        "unless no resample differs."
    )
    return [Table(f"{task}-{metric.replace('_', '-')}-differences", heads, tuple(lines), caption)] if lines else []


def _difference(difference: Difference) -> tuple[str, ...]:
    if difference.interval is None or difference.test is None or difference.bca is None:
        return ("–", *("",) * 4, difference.why_undefined)
    metric = text.DIFFERENCES[difference.metric]
    return (
        " ".join(text.difference_texts(difference)),
        "no spread" if difference.bca.is_point else text.interval_texts(difference.bca, metric)[1],
        text.p_text(difference.test, name=False),
        text.adjusted_text(difference) or text.p_text(difference.test, name=False),
        text.improvement_text(difference.improvement),
        str(difference.verdict),
    )


def across_table(rows: Sequence[MethodSummary]) -> list[Table]:
    """Return the methods over all tasks; no table where there is one task."""
    found = across_tasks(rows)
    points, percent = text.DIFFERENCES["test_accuracy"], text.METRICS["test_accuracy"]
    ratio = text.Metric("", decimals=2)
    reference = text.method_label(REFERENCE)
    lines = []
    for one in found:
        cells = [
            " ".join(text.interval_texts(interval, metric, signed=signed)) if interval else "–"
            for interval, metric, signed in ((one.accuracy, percent, False), (one.gain, points, True))
        ]
        cells.append(" ".join(text.interval_texts(one.trace_ratio, ratio)) if one.trace_ratio else "–")
        cells += [text.improvement_text((one.better or {}).get(metric)) for metric in COMPARED]
        lines.append((text.method_label(one.method), *cells))
    heads = (
        "Method",
        f"{percent.title}, IQM",
        f"− {reference} (points), IQM",
        f"Trace over {reference}'s, IQM",
        "P(more accurate)",
        "P(flatter)",
    )
    caption = (
        f"{found[0].num_tasks if found else 0} tasks together: interquartile means (IQM) over tasks and seeds, and "
        f"the probability that a run is better than one of {reference} on a random task, with stratified bootstrap "
        "intervals (arXiv:2108.13264). Differences and ratios are taken within a seed, ratios as logarithms; accuracy "
        "as it is depends on which tasks are easy."
    )
    return [Table("across-tasks", heads, tuple(lines), caption)] if lines else []


def _full_labels(rows: Sequence[MethodSummary]) -> list[str]:
    return [f"{text.method_label(row.method)}{', ' + how if (how := text.setting(row)) else ''}" for row in rows]
