"""Accuracy and trace by method, a dot for each seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from flatmin_lab.report.style import INK, MUTED, method_styles
from flatmin_lab.report.summary import quantity, runs_of
from flatmin_lab.report.svg import RC
from flatmin_lab.report.text import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from flatmin_lab.spec import Comparison

_PANELS = ("test_accuracy", "trace")
_BELOW = 0.27  # the seeds stand below their mean, which would hide them


def draw(found: Comparison) -> Figure:
    """Draw a row for each method: grey dots for its seeds, its mean with the interval."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 0.9 + 0.34 * len(found.spec.methods)), layout="constrained")
        for metric, axes in zip(_PANELS, figure.subplots(1, 2, sharey=True), strict=True):
            _panel(axes, found, metric)
    return figure


def _panel(axes: Axes, found: Comparison, metric: str) -> None:
    (task,) = found.spec.tasks
    styles, factor = method_styles(found.spec.methods), METRICS[metric].factor
    for row, way in enumerate(found.spec.methods):
        results = runs_of(found, task, way)
        known = [factor * x for r in results if (x := getattr(r, metric)) is not None]
        axes.plot(known, [row + _BELOW] * len(known), "o", color=MUTED.light, markersize=3)
        interval = quantity(results, metric).interval
        if interval is None:
            continue
        mean = factor * interval.mean
        if interval.is_bounded:
            axes.plot([factor * interval.low, factor * interval.high], [row, row], color=INK.light, linewidth=1)
        style = styles[way]
        axes.plot([mean], [row], style.marker, color=style.colour.light, markersize=7)
    axes.set_yticks(range(len(styles)), [style.label for style in styles.values()])
    axes.set(title=METRICS[metric].title, ylim=(len(styles) - 0.5, -0.5))
    axes.grid(visible=True, axis="x")
