"""The figure: test accuracy and trace over steps, by method and by batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from flatmin_lab.recipes.escape2023.fig3_results import shown
from flatmin_lab.report.style import MUTED, MethodStyle, method_styles
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from flatmin_lab.recipes.escape2023.fig3_results import Chosen, Results

_ROWS = (("test_accuracy", "test accuracy (%)"), ("trace", "trace of the Hessian"))


def draw_fig3(found: Results) -> Figure:
    """Draw RS against SA at the largest batch on the left and SA by batch size on the right: means and ranges."""
    large = max(one.way.batch_size for one in found.chosen)
    by_method = [one for one in found.chosen if one.way.batch_size == large]
    by_batch = sorted((one for one in found.chosen if one.way.method == "SA"), key=lambda one: one.way.batch_size)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 6.0), layout="constrained")
        panels = figure.subplots(2, 2, sharey="row", sharex=True)
        for column, shown_here in enumerate((by_method, by_batch)):
            styles = method_styles(tuple(one.way.label for one in shown_here)).values()
            for row, (metric, label) in enumerate(_ROWS):
                axes = panels[row, column]
                for one, style in zip(shown_here, styles, strict=True):
                    _draw(axes, one, metric, style)
                axes.set(ylabel=label if column == 0 else "", xlabel="step" if row else "")
                if metric == "trace":
                    axes.set_yscale("log")
                axes.grid(visible=True, which="major")
        _frame(found, panels[0], large)
    return figure


def _frame(found: Results, top: Sequence[Axes], large: int) -> None:
    for axes, title in zip(top, (f"batches of {large}", "SA by batch size"), strict=True):
        fresh = shown(found.start.fresh, "test_accuracy")
        axes.axhline(fresh, color=MUTED.light, linewidth=0.8, dashes=(2, 3), label="fresh weights, fitted")
        axes.set_title(title)
        axes.legend(fontsize=7)


def _draw(axes: Axes, one: Chosen, metric: str, style: MethodStyle) -> None:
    """Draw the mean over seeds, and the range behind it, as far as all of them came."""
    looks = list(zip(*(walk.looks for walk in one.walks), strict=False))
    at = [(seen[0].step, [shown(look, metric) for look in seen]) for seen in looks]
    at = [(step, values) for step, values in at if not np.isnan(values).any()]
    steps, values = [step for step, _ in at], np.array([values for _, values in at])
    label = one.way.label + (f", ρ = {one.rho:g}" if one.rho else "")
    look = {"color": style.colour.light, "marker": style.marker, "markersize": 3.5, "linewidth": 1.2}
    axes.plot(steps, values.mean(1), dashes=style.dashes, label=label, **look)
    axes.fill_between(steps, values.min(1), values.max(1), alpha=0.2, color=style.colour.light, linewidth=0)
