"""Figures of studies: a line for each row, a dot for each seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from flatmin_lab.recipes.study_tables import factor_of, title_of
from flatmin_lab.report.style import INK, MUTED, method_styles
from flatmin_lab.report.summary import quantity
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from flatmin_lab.recipes.studies import Found

_BELOW = 0.27  # the seeds stand below their mean, which would hide them


def rows_figure(found: Found, metrics: Sequence[str]) -> Figure:
    """Draw a line for each row: grey dots for its seeds, its mean with the interval.

    Args:
        found: What was found on a task.
        metrics: Fields of ``RunResult``, a panel each.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.5 * len(metrics), 0.9 + 0.34 * len(found.rows)), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for metric, axes in zip(metrics, panels, strict=True):
            _panel(axes, found, metric)
    return figure


def _panel(axes: Axes, found: Found, metric: str) -> None:
    factor, styles = factor_of(metric), method_styles(found.comparison.spec.methods)
    for i, row in enumerate(found.rows):
        runs = found.runs(row)
        known = [factor * x for r in runs if (x := getattr(r, metric)) is not None]
        axes.plot(known, [i + _BELOW] * len(known), "o", color=MUTED.light, markersize=3)
        interval = quantity(runs, metric).interval
        if interval is None:
            continue
        if interval.is_bounded:
            axes.plot([factor * interval.low, factor * interval.high], [i, i], color=INK.light, linewidth=1)
        style = styles[row.arm.method]
        axes.plot([factor * interval.mean], [i], style.marker, color=style.colour.light, markersize=7)
    axes.set_yticks(range(len(found.rows)), [row.label for row in found.rows])
    axes.set(title=title_of(metric), ylim=(len(found.rows) - 0.5, -0.5))
    axes.grid(visible=True, axis="x")
