"""Quantities along training: a thin line for each seed, a thick one for their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from flatmin_lab.recipes.nso2024.fig3 import ALONG, course
from flatmin_lab.report.style import method_styles
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from flatmin_lab.recipes.studies import Found


def draw(one: Found) -> Figure:
    """Draw a panel for each quantity."""
    styles = method_styles(tuple(row.arm.method for row in one.rows))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.2 * len(ALONG), 3.2), layout="constrained")
        panels = figure.subplots(1, len(ALONG), squeeze=False)[0]
        for axes, (quantity, what) in zip(panels, ALONG.items(), strict=True):
            for row in one.rows:
                across, values = course(one, row.label, quantity)
                if not values.size:
                    continue
                style = styles[row.arm.method]
                colour = style.colour.light
                axes.plot(across, values.T, color=colour, linewidth=0.6, alpha=0.5)
                mean = values.mean(axis=0)
                axes.plot(across, mean, style.marker, color=colour, markersize=4)
                dashes = {} if style.dashes[0] is None else {"dashes": style.dashes}
                axes.plot(across, mean, color=colour, linewidth=1.8, label=row.label, **dashes)
            axes.set(title=what, xlabel="gradient evaluations")
            if quantity != "test_loss" and min(line.get_ydata().min() for line in axes.lines) > 0:
                axes.set_yscale("log")
            axes.grid(visible=True, which="major")
        panels[0].legend(frameon=False)
    return figure
