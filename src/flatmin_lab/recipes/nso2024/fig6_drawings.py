"""Figure 6 drawn again, and the trace beside the nuclear norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from flatmin_lab.report.style import MUTED, MethodStyle, method_styles
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from flatmin.problems import SensingTask
    from flatmin_lab.recipes.nso2024.sensing import Curve

_PANELS = ("training error", "validation error", "squared distance")
_STYLES: dict[str, MethodStyle] = dict(
    zip(("GD", "WP-GD", "NSO"), method_styles(("sgd", "wpsgd", "nso")).values(), strict=True)
)


def draw_curves(rows: Sequence[tuple[str, list[Curve]]]) -> Figure:
    """Draw errors and distance over steps, a row for each learning rate; a thin line for each draw of the noise."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.6, 0.5 + 2.7 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(_PANELS), squeeze=False)
        for (title, curves), row in zip(rows, panels, strict=True):
            for quantity, axes in zip(_PANELS, row, strict=True):
                _draw(axes, curves, quantity)
                axes.set_title(f"{quantity}, {title}")
        panels[0, 0].legend()
    return figure


def draw_traces(curves: Sequence[Curve], task: SensingTask) -> Figure:
    """Draw nuclear norm and Hessian trace over steps, with those of the solution as a grey line."""
    solution = task.train.minima[0]
    levels = {"nuclear norm": task.train.nuclear_norm(solution), "trace": task.train.trace(solution)}
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.4, 3.1), layout="constrained")
        for (quantity, level), axes in zip(levels.items(), figure.subplots(1, 2), strict=True):
            _draw(axes, curves, quantity)
            axes.axhline(float(level), color=MUTED.light, linewidth=0.9, label="solution")
            axes.set_title({"nuclear norm": "nuclear norm of WWᵀ", "trace": "trace of the Hessian"}[quantity])
        figure.axes[0].legend()
    return figure


def _draw(axes: Axes, curves: Sequence[Curve], quantity: str) -> None:
    for found in curves:
        style, values = _STYLES[found.method], found.values[quantity]
        for i in range(values.shape[1]):
            look = {"color": style.colour.light, "dashes": style.dashes, "linewidth": 1.2}
            axes.plot(found.steps[1:], values[1:, i], label=None if i else found.method, **look)
    axes.set(xscale="log", yscale="log", xlabel="step")
    axes.grid(visible=True, which="major")
