"""Trace against test loss: whether flatter runs are better ones, one dot a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import matplotlib as mpl

from flatmin_lab.report import text
from flatmin_lab.report.figures import identifiers, is_wide, looks
from flatmin_lab.report.svg import RC, legend_above, panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from flatmin_lab.report.style import Styles
    from flatmin_lab.report.summary import MethodSummary

_LOG_RANGE = 5.0


def trace_figure(rows: Sequence[MethodSummary], styles: Styles) -> Figure | None:
    """Hessian trace against test loss, one dot a run, by row.

    Args:
        rows: The rows of one task.
        styles: Of every method.

    Returns:
        The figure, in which the dot of a run has the identifier ``run-<row>-<seed>``; None where fewer than two runs
        have both. Runs that diverged are left out.
    """
    every = [point for row in rows for point in _points(row)]
    if len(every) < 2:
        return None
    with mpl.rc_context(RC):
        figure, axes = panel(height=3.5)
        named = zip(rows, text.labels(rows), identifiers(rows), looks(rows, styles), strict=True)
        for row, label, name, style in named:
            for i, (seed, trace, loss) in enumerate(_points(row)):
                axes.plot(
                    [trace],
                    [loss],
                    style.marker,
                    gid=f"run-{name}-{seed}",
                    color=style.colour.light,
                    markersize=5.5,
                    alpha=0.75,
                    markeredgewidth=0,
                    label=label if i == 0 else None,
                )
        if is_wide([trace for _, trace, _ in every], _LOG_RANGE):
            axes.set_xscale("log")
        if is_wide([loss for *_, loss in every], _LOG_RANGE):
            axes.set_yscale("log")
        axes.set_xlabel(text.METRICS["trace"].title)
        axes.set_ylabel(text.METRICS["test_loss"].title)
        axes.grid(visible=True)
        legend_above(figure, text.labels(rows))
    return figure


def _points(row: MethodSummary) -> list[tuple[int, float, float]]:
    """Seed, trace and test loss of the runs that have both."""
    known = [(r.spec.seed, r.trace, r.test_loss) for r in row.results if r.trace is not None]
    return [point for point in known if all(map(math.isfinite, point))]
