"""The report: one HTML file with everything in it, made from stored results alone."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from flatmin_lab.files import write_whole
from flatmin_lab.report import text
from flatmin_lab.report.captions import ALTS, CAPTIONS
from flatmin_lab.report.drawn import drawn
from flatmin_lab.report.findings import finding, headline, legend
from flatmin_lab.report.html import render_page, shown
from flatmin_lab.report.plain import across_table, differences_table
from flatmin_lab.report.summary import COMPARED, METRICS, REFERENCE, summarise
from flatmin_lab.report.surfaces import common_scale, solid, surface_figure
from flatmin_lab.report.svg import inline_svg
from flatmin_lab.spec import Study
from flatmin_lab.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from markupsafe import Markup

    from flatmin_lab.report.summary import MethodSummary
    from flatmin_lab.spec import Comparison, RunResult, Selection, Surface


_MOST_IN_WORDS = 4  # rows whose differences are written out at once; the tables have them all


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report as one self-contained file that asks nothing of any other place.

    Args:
        comparison: What to report, from stored results.
        path: Where; it appears whole or not at all.

    Raises:
        StoreError: It cannot be written.
    """
    write_whole(path, render(comparison).encode())


def render(comparison: Comparison) -> str:
    """Return the report's HTML; every text that came from outside is escaped."""
    return render_page("page.html.j2", scripted=bool(comparison.surfaces), c=content(comparison))


def content(comparison: Comparison, prefix: str = "") -> dict[str, Any]:
    """Return what the template shows of a comparison.

    Args:
        comparison: What was run.
        prefix: Of every identifier, where a page shows several comparisons.
    """
    rows, spec = summarise(comparison), comparison.spec
    return {
        "prefix": prefix,
        "spec": spec,
        "methods": [text.method_label(m) for m in spec.methods],
        "reference": text.method_label(REFERENCE),
        "has_reference": REFERENCE in spec.methods,
        "legend": legend(comparison),
        "tasks": [_task(comparison, task, [s for s in rows if s.task == task], prefix) for task in spec.tasks],
        "across": [shown(table) for table in across_table(rows)],
        "tuning": [_tuning(s) for s in comparison.selections],
        "diverged": [r for r in comparison.results if r.status == "diverged"],
        "runs": [_run(r) for r in comparison.results],
        "run_heads": ["Task", "Method", "Seed", *(text.METRICS[name].title for name in METRICS)],
        "environment": sorted(comparison.environment.items()),
        "command": _command(comparison),
    }


def _task(comparison: Comparison, task: str, rows: Sequence[MethodSummary], prefix: str) -> dict[str, Any]:
    others = [(label, row) for label, row in zip(text.labels(rows), rows, strict=True) if row.differences]
    findings = [(metric, [finding(label, row.differences[metric]) for label, row in others]) for metric in COMPARED]
    surfaces = [s for s in comparison.surfaces if s.task == task]
    name = f"{prefix}t{comparison.spec.tasks.index(task)}"
    return {
        "name": task,
        "summary": TASKS[task].summary if task in TASKS else "",
        "headlines": [
            headline([(label, row.differences[metric].verdict) for label, row in others], _WORDS[metric])
            for metric in COMPARED
            if REFERENCE in comparison.spec.methods
        ],
        "is_long": len(others) > _MOST_IN_WORDS,
        "findings": findings if REFERENCE in comparison.spec.methods else [],
        "heads": [text.METRICS[name].title for name in METRICS],
        "rows": [_row(row) for row in rows],
        "tables": [shown(t) for metric in COMPARED for t in differences_table(task, rows, metric)],
        "figures": list(drawn(comparison, task, rows, name)),
        "surfaces": list(_surfaces(surfaces, name)),
        "solids": _solids(surfaces),
        "surface_caption": CAPTIONS["surfaces"],
    }


_WORDS = {"test_accuracy": "test accuracy", "trace": "Hessian trace"}


def _row(summary: MethodSummary) -> dict[str, Any]:
    difference = summary.differences.get("test_accuracy")
    return {
        "method": text.method_label(summary.method),
        "setting": text.setting(summary),
        "cells": [text.quantity_texts(summary.quantities[name], name) for name in METRICS],
        "difference": text.difference_texts(difference) if difference else ("reference", ""),
        "p": text.p_texts(difference) if difference else ("", ""),
    }


def _surfaces(surfaces: Sequence[Surface], name: str) -> Iterator[Markup]:
    scale = common_scale(surfaces)
    for number, surface in enumerate(surfaces):
        if scale is not None:
            figure = surface_figure(surface, scale, _title(surface))
            alt = ALTS["surfaces"].format(method=text.method_label(surface.method), task=surface.task)
            yield inline_svg(figure, f"{name}-surface{number}", alt)


def _solids(surfaces: Sequence[Surface]) -> str:
    scale = common_scale(surfaces)
    return "" if scale is None else solid(surfaces, [_title(s) for s in surfaces], scale)


def _title(surface: Surface) -> str:
    return f"{text.method_label(surface.method)}, seed {surface.seed}"


def _tuning(selection: Selection) -> dict[str, Any]:
    return {
        "task": selection.task,
        "method": text.method_label(selection.method),
        "symbol": text.SYMBOLS[selection.hyperparameter],
        "values": [
            {
                "value": f"{value:g}",
                "accuracy": f"{text.number(100 * accuracy, 1)} %",
                "is_chosen": value == selection.chosen,
            }
            for value, accuracy in zip(selection.grid, selection.validation_accuracies, strict=True)
        ],
        "at_edge": selection.chosen in (selection.grid[0], selection.grid[-1]) and len(selection.grid) > 1,
    }


def _run(result: RunResult) -> list[str]:
    spec = result.spec
    label = text.method_label(spec.method)
    setting = "" if spec.value is None else f" ({spec.value:g})"
    values = ((text.METRICS[name], getattr(result, name)) for name in METRICS)
    cells = ["–" if value is None else text.number(m.factor * value, m.decimals) for m, value in values]
    return [spec.task, label + setting, str(spec.seed), *cells]


def _command(comparison: Comparison) -> str:
    """Return what makes the runs again; nothing for a study that is no comparison of all methods on all tasks."""
    spec = comparison.spec
    others = {"seeds": spec.seeds, "device": spec.device, "first_seed": spec.first_seed}
    crossed = Study.crossed(tasks=spec.tasks, methods=spec.methods, budget=max(spec.budgets, default=0), **others)
    if crossed != spec or spec.first_seed:
        return ""
    words = ["flatmin", "compare", "--methods", *spec.methods, "--tasks", *spec.tasks]
    words += ["--seeds", str(spec.seeds), "--budget", str(crossed.budgets[0]), "--device", spec.device]
    return shlex.join(words)
