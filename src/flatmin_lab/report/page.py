"""The report: one HTML file with everything in it, made from stored results alone."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from flatmin_lab.files import write_whole
from flatmin_lab.report import text
from flatmin_lab.report.curves import CURVES, curves_figure
from flatmin_lab.report.figures import differences_figure, seeds_figure
from flatmin_lab.report.html import render_page
from flatmin_lab.report.summary import COMPARED, METRICS, REFERENCE, summarise
from flatmin_lab.report.surfaces import common_scale, surface_figure
from flatmin_lab.report.svg import inline_svg
from flatmin_lab.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from markupsafe import Markup
    from matplotlib.figure import Figure

    from flatmin_lab.report.summary import MethodSummary
    from flatmin_lab.spec import Comparison, RunResult, Selection, Surface

_CAPTIONS = {
    "test_accuracy": "Test accuracy. Each mark is one seed; a line joins the runs that share a seed, that is initial "
    "weights, splits and batch order. Beside them, the mean with its 95 % interval. Higher is better.",
    "difference": "What changes within a seed: test accuracy minus that of {reference} with the same seed, mean and "
    "95 % interval. Right of the line is better than {reference}.",
    "trace": "Hessian trace of the training loss at the end, an overall measure of sharpness: lower is flatter. "
    "Marks, lines and intervals as above.",
    "train_loss": "Loss on the training labels during training; thin lines are seeds, the thick one is their mean. "
    "Methods that perturb the weights evaluate two gradients a step, so they take half as many steps for the same "
    "budget.",
    "validation_accuracy": "Accuracy on held-out images during training. A curve that falls again is a network that "
    "has begun to fit its training labels by heart.",
    "live_trace": "The Hessian trace as the optimizer sees it while it trains, from the gradients it computes anyway. "
    "It is the trace of the loss smoothed by the method's own noise.",
    "surfaces": "Training loss around the solutions of one seed, along two random directions in which a step of 1 "
    "moves every filter by its own length. One colour scale for all, so that steepness can be compared by eye.",
}
_ALTS = {
    "test_accuracy": "Test accuracy of every seed by method on {task}, with means and intervals",
    "difference": "Paired differences in test accuracy to {reference} on {task}, one dot a seed",
    "trace": "Hessian trace of every seed by method on {task}, with means and intervals",
    "train_loss": "Training loss against gradient evaluations on {task}",
    "validation_accuracy": "Validation accuracy against gradient evaluations on {task}",
    "live_trace": "Live Hessian trace against gradient evaluations on {task}",
    "surfaces": "Training loss around the {method} solution on {task}",
}


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the report as one self-contained file: no script, no request to anywhere.

    Args:
        comparison: What to report, from stored results.
        path: Where; it appears whole or not at all.

    Raises:
        StoreError: It cannot be written.
    """
    write_whole(path, render(comparison).encode())


def render(comparison: Comparison) -> str:
    """Return the report's HTML; every text that came from outside is escaped."""
    summaries = summarise(comparison)
    spec = comparison.spec
    return render_page(
        "page.html.j2",
        spec=spec,
        methods=[text.method_label(m) for m in spec.methods],
        reference=text.method_label(REFERENCE),
        has_reference=REFERENCE in spec.methods,
        legend=text.legend(comparison),
        tasks=[_task(comparison, task, [s for s in summaries if s.task == task]) for task in spec.tasks],
        tuning=[_tuning(s) for s in comparison.selections],
        diverged=[r for r in comparison.results if r.status == "diverged"],
        runs=[_run(r) for r in comparison.results],
        run_heads=["Task", "Method", "Seed", *(text.METRICS[name].title for name in METRICS)],
        environment=sorted(comparison.environment.items()),
        command=_command(comparison),
    )


def _task(comparison: Comparison, task: str, summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    others = [s for s in summaries if s.differences]
    findings = [(metric, [text.finding(s.method, s.differences[metric]) for s in others]) for metric in COMPARED]
    return {
        "name": task,
        "summary": TASKS[task].summary if task in TASKS else "",
        "headlines": [
            text.headline([(s.method, s.differences[metric].verdict) for s in others], _WORDS[metric])
            for metric in COMPARED
            if REFERENCE in comparison.spec.methods
        ],
        "findings": findings if REFERENCE in comparison.spec.methods else [],
        "heads": [text.METRICS[name].title for name in METRICS],
        "rows": [_row(s) for s in summaries],
        "figures": list(_figures(comparison, task)),
        "surfaces": list(_surfaces(comparison, task)),
        "surface_caption": _CAPTIONS["surfaces"],
    }


_WORDS = {"test_accuracy": "test accuracy", "trace": "Hessian trace"}


def _row(summary: MethodSummary) -> dict[str, Any]:
    difference = summary.differences.get("test_accuracy")
    return {
        "method": text.method_label(summary.method),
        "setting": text.setting(summary),
        "cells": [text.quantity_texts(summary.quantities[name], name) for name in METRICS],
        "difference": text.difference_texts(difference) if difference else ("reference", ""),
        "p": text.p_cell(difference) if difference else "",
    }


def _figures(comparison: Comparison, task: str) -> Iterator[dict[str, Any]]:
    drawn: list[tuple[str, Figure | None]] = [
        ("test_accuracy", seeds_figure(comparison, task, "test_accuracy")),
        ("difference", differences_figure(comparison, task)),
        ("trace", seeds_figure(comparison, task, "trace")),
        *((field, curves_figure(comparison, task, field)) for field in CURVES),
    ]
    words = {"task": task, "reference": text.method_label(REFERENCE)}
    index = comparison.spec.tasks.index(task)
    for name, figure in drawn:
        if figure is not None:
            svg = inline_svg(figure, f"t{index}-{name}", _ALTS[name].format(**words))
            yield {"svg": svg, "caption": _CAPTIONS[name].format(**words)}


def _surfaces(comparison: Comparison, task: str) -> Iterator[Markup]:
    surfaces: list[Surface] = [s for s in comparison.surfaces if s.task == task]
    scale = common_scale(surfaces)
    index = comparison.spec.tasks.index(task)
    for number, surface in enumerate(surfaces):
        if scale is not None:
            label = text.method_label(surface.method)
            figure = surface_figure(surface, scale, f"{label}, seed {surface.seed}")
            alt = _ALTS["surfaces"].format(method=label, task=task)
            yield inline_svg(figure, f"t{index}-surface{number}", alt)


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
    spec = comparison.spec
    words = ["flatmin", "compare", "--methods", *spec.methods, "--tasks", *spec.tasks]
    words += ["--seeds", str(spec.seeds), "--budget", str(spec.budgets[0]), "--device", spec.device]
    return shlex.join(words)
