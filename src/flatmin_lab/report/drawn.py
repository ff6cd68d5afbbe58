"""The figures of one task, in the order of the page, each with its words."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from flatmin_lab.report import text
from flatmin_lab.report.captions import ALTS, CAPTIONS
from flatmin_lab.report.curves import curves_figure
from flatmin_lab.report.figures import differences_figure, seeds_figure
from flatmin_lab.report.scatter import trace_figure
from flatmin_lab.report.sensitivity import CHANGED, METRICS, axis_label, lines, sensitivity_figure
from flatmin_lab.report.style import method_styles
from flatmin_lab.report.summary import REFERENCE
from flatmin_lab.report.svg import inline_svg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from flatmin_lab.report.style import Styles
    from flatmin_lab.report.summary import MethodSummary
    from flatmin_lab.spec import Comparison

_CHOSEN = "Values of σ, ρ and α were chosen by it, over the tuning seeds; the other seeds have the chosen value alone."
_ANEW = "σ, ρ and α are those chosen in each setting, where there was a choice."


def drawn(comparison: Comparison, task: str, rows: Sequence[MethodSummary], prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the figures of a task that there are numbers for.

    Args:
        comparison: What was run.
        task: Name of the task.
        rows: Its rows.
        prefix: Of every identifier in the figures.

    Yields:
        Inline SVG and caption.
    """
    styles = method_styles(comparison.spec.methods)
    known = {"task": task, "reference": text.method_label(REFERENCE)}
    for name, figure in _of_rows(rows, styles):
        if figure is not None:
            yield _figure(name, name, figure, prefix, known)
    for axis, found in groupby(lines(comparison, task), key=lambda line: line.axis):
        group = list(found)
        for metric, how in METRICS.items():
            figure = sensitivity_figure(group, metric, styles)
            if figure is not None:
                note = _ANEW if axis in CHANGED else _CHOSEN if metric == "validation_accuracy" else ""
                label = axis_label(axis) if axis in text.SYMBOLS else axis_label(axis).lower()
                told = {"metric": how.label, "axis": label, "note": note}
                yield _figure("sensitivity", f"{axis}-{metric}", figure, prefix, known | told)


def _of_rows(rows: Sequence[MethodSummary], styles: Styles) -> Iterator[tuple[str, Figure | None]]:
    yield "test_accuracy", seeds_figure(rows, "test_accuracy", styles)
    yield "difference", differences_figure(rows, styles)
    yield "trace", seeds_figure(rows, "trace", styles)
    yield "trace_against_loss", trace_figure(rows, styles)
    for field in ("train_loss", "validation_accuracy"):
        yield field, curves_figure(rows, field, styles)
    yield "validation_accuracy_seconds", curves_figure(rows, "validation_accuracy", styles, seconds=True)
    for field in ("test_accuracy", "trace"):
        yield f"{field}_along", curves_figure(rows, field, styles)
    yield "live_trace", curves_figure(rows, "live_trace", styles)


def _figure(words: str, name: str, figure: Figure, prefix: str, known: dict[str, str]) -> dict[str, Any]:
    svg = inline_svg(figure, f"{prefix}-{name}", ALTS[words].format(**known))
    return {"svg": svg, "caption": CAPTIONS[words].format(**known).strip()}
