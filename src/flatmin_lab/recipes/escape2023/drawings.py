"""The figures of both recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from flatmin_lab.recipes.escape2023.cells import BY_EPS, DIMENSION
from flatmin_lab.recipes.escape2023.scalings import METHODS, bound
from flatmin_lab.report.style import INK, MUTED, MethodStyle, method_styles
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from flatmin_lab.recipes.escape2023.cells import Cell
    from flatmin_lab.recipes.escape2023.example1 import Walk
    from flatmin_lab.recipes.escape2023.fits import Fits
    from flatmin_lab.recipes.escape2023.reach import Reached


def draw_rates(found: Mapping[Cell, Reached], fits: Fits) -> Figure:
    """Draw steps over ε by RS and by SA and over d, points for seeds' means, with the order of the bound in grey."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(10.2, 3.5), layout="constrained")
        panels = figure.subplots(1, 3)
        for method, axes in zip(METHODS, panels[:2], strict=True):
            for study, style in zip(BY_EPS, method_styles(tuple(BY_EPS)).values(), strict=True):
                label = _label(study, study, method, fits)
                _draw(axes, found, study, method, over="eps", label=label, style=style)
            axes.set(title=f"{method}, over ε", xlabel="ε")
            axes.invert_xaxis()
        for method, style in zip(METHODS, method_styles(METHODS).values(), strict=True):
            label = _label(method, DIMENSION, method, fits)
            _draw(panels[2], found, DIMENSION, method, over="dim", label=label, style=style)
        panels[2].set(title="κ = 1, over d", xlabel="d")
        for axes in panels:
            axes.set(xscale="log", yscale="log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if axes is not panels[2] else (1.0,)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(labelsize=8)
            axes.grid(visible=True, which="major")
            axes.legend(fontsize=7)
        panels[0].set_ylabel("steps to an (ε, √ε)-flat minimum")
    return figure


def _label(name: str, study: str, method: str, fits: Fits) -> str:
    slopes = [
        f"{fit.steps.slope:.2f}".replace("-", "−") for (s, m, _), fit in fits.items() if (s, m) == (study, method)
    ]
    return f"{name}: {', '.join(slopes)}"


def _draw(
    axes: Axes, found: Mapping[Cell, Reached], study: str, method: str, *, over: str, label: str, style: MethodStyle
) -> None:
    chosen = [cell for cell in found if (cell.study, cell.method) == (study, method)]
    apart: list[float | None] = [None] if over == "eps" else list(dict.fromkeys(cell.eps for cell in chosen))
    look = {"color": style.colour.light, "marker": style.marker, "markersize": 4, "linewidth": 1.2}
    for i, eps in enumerate(apart):
        cells = sorted((c for c in chosen if eps in (None, c.eps)), key=lambda c: getattr(c, over))
        x = [getattr(cell, over) for cell in cells]
        means = np.array([np.exp(np.log(found[cell].steps).mean()) for cell in cells])
        axes.plot(x, means, dashes=style.dashes, label=None if i else label, **look)
        orders = np.array([bound(method, cell.eps, cell.dim) for cell in cells])
        at = 0 if over == "dim" else -1  # laid through one cell: only its slope means anything
        axes.plot(x, orders * means[at] / orders[at], color=MUTED.light, linewidth=0.8, zorder=0)


def draw_example1(walks: Mapping[str, Walk]) -> Figure:
    """Draw the paths of the means beside the minima, and the trace over steps beside what the drift predicts."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        plane, over = figure.subplots(1, 2)
        branch = np.geomspace(0.24, 4.2, 200)
        plane.plot(branch, 1 / branch, color=MUTED.light, linewidth=0.8, zorder=0, label="minima")
        plane.plot([1], [1], marker="*", markersize=11, color=MUTED.light, linestyle="none", label="flat minimum")
        for (name, walk), style in zip(walks.items(), method_styles(tuple(walks)).values(), strict=True):
            look = {"color": style.colour.light, "linewidth": 1.0}
            path = walk.points[:, 0]
            plane.plot(path[:, 0], path[:, 1], alpha=0.7, **look)
            plane.plot(*path[-1], marker=style.marker, markersize=5, color=style.colour.light, linestyle="none")
            over.plot(walk.steps, walk.traces.mean(1), label=name, **look)
            over.fill_between(walk.steps, walk.traces.min(1), walk.traces.max(1), alpha=0.2, color=style.colour.light)
            over.plot(walk.steps, walk.predicted, color=INK.light, linewidth=0.8, dashes=(2, 3))
        plane.set(xlabel="x₁", ylabel="x₂", title="the first seed, and where it ends")
        plane.legend(fontsize=7)
        over.set(xlabel="step", ylabel="trace over d, at Φ(x)", yscale="log", title="mean and range; dashed: the drift")
        over.set_yticks([2, 4, 8, 16], labels=["2", "4", "8", "16"])
        over.yaxis.set_minor_formatter(NullFormatter())
        over.set_xticks(np.linspace(0, max(walk.steps[-1] for walk in walks.values()), 5))
        over.legend(fontsize=7)
        over.grid(visible=True, which="major")
    return figure
