"""Figures of studies: a line for each row, or curves over a setting; a dot for each seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from flatmin_lab.recipes.study_tables import factor_of, title_of
from flatmin_lab.report.figures import is_wide
from flatmin_lab.report.style import INK, MUTED, method_styles
from flatmin_lab.report.summary import quantity
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from flatmin_lab.recipes.studies import Found, Row
    from flatmin_lab.report.style import MethodStyle
    from flatmin_lab.statistics import Interval

_BELOW = 0.27  # the seeds stand below their mean, which would hide them
_LOG_RANGE = 12.0  # values that span more stand on a logarithmic axis
_APART = 1.04  # curves stand beside each other on their logarithmic axis, which would hide one behind the other


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        label: In the legend.
        points: Where each row stands on the axis.
    """

    label: str
    points: tuple[tuple[float, Row], ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes, the horizontal one logarithmic.

    Attributes:
        title: Above it.
        metric: A field of ``RunResult``.
        across: What is varied.
        curves: A line each.
        reference: A row that is drawn as a level.
    """

    title: str
    metric: str
    across: str
    curves: tuple[Curve, ...]
    reference: Row | None = None


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
            _rows(axes, found, metric)
    return figure


def curves_figure(found: Found, panels: Sequence[Sequence[Panel]]) -> Figure:
    """Draw metrics against a setting: dots for the seeds, the means with their intervals joined by a line.

    Args:
        found: What was found on a task.
        panels: Line by line, as many in each; a line shares its vertical axis where it shows one metric.
    """
    across = max(map(len, panels))
    styles = method_styles(found.comparison.spec.methods)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(4.0 * across, 3.2 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), across, squeeze=False)
        for line, line_axes in zip(panels, grid, strict=True):
            for panel, axes in zip(line, line_axes, strict=True):
                _curves(axes, found, panel, styles)
            if len({panel.metric for panel in line}) == 1:
                for axes in line_axes[1:]:
                    axes.sharey(line_axes[0])
            line_axes[0].autoscale_view()
    return figure


def _rows(axes: Axes, found: Found, metric: str) -> None:
    factor, styles = factor_of(metric), method_styles(found.comparison.spec.methods)
    for i, row in enumerate(found.rows):
        axes.plot(known := _known(found, row, metric), [i + _BELOW] * len(known), "o", color=MUTED.light, markersize=3)
        interval = _interval(found, row, metric)
        if interval is None:
            continue
        if interval.is_bounded:
            axes.plot([factor * interval.low, factor * interval.high], [i, i], color=INK.light, linewidth=1)
        style = styles[row.arm.method]
        axes.plot([factor * interval.mean], [i], style.marker, color=style.colour.light, markersize=7)
    axes.set_yticks(range(len(found.rows)), [row.label for row in found.rows])
    axes.set(title=title_of(metric), ylim=(len(found.rows) - 0.5, -0.5))
    every = [x for row in found.rows for x in _known(found, row, metric)]
    if is_wide(every, _LOG_RANGE):
        axes.set(xscale="log", xlim=_around(every))
    axes.grid(visible=True, axis="x")


def _curves(axes: Axes, found: Found, panel: Panel, styles: dict[str, MethodStyle]) -> None:
    factor = factor_of(panel.metric)
    axes.set_xscale("log")
    if panel.reference is not None and (level := _interval(found, panel.reference, panel.metric)) is not None:
        style = styles[panel.reference.arm.method]
        axes.axhline(factor * level.mean, color=style.colour.light, linewidth=1, label=panel.reference.label)
        if level.is_bounded:
            axes.axhspan(factor * level.low, factor * level.high, color=style.colour.light, alpha=0.12, linewidth=0)
    for i, curve in enumerate(panel.curves):
        style, aside = styles[curve.points[0][1].arm.method], _APART ** (2 * i - len(panel.curves) + 1)
        means = []
        for x, row in curve.points:
            known = _known(found, row, panel.metric)
            axes.plot([x * aside] * len(known), known, "o", color=style.colour.light, markersize=2.5, alpha=0.35)
            interval = _interval(found, row, panel.metric)
            means.append(float("nan") if interval is None else factor * interval.mean)
            if interval is not None and interval.is_bounded:
                ends = [factor * interval.low, factor * interval.high]
                axes.plot([x * aside] * 2, ends, color=style.colour.light, linewidth=1)
        places = [x * aside for x, _ in curve.points]
        axes.plot(places, means, style.marker, linestyle="-", color=style.colour.light, markersize=6, label=curve.label)
    every = [x for curve in panel.curves for _, row in curve.points for x in _known(found, row, panel.metric)]
    if is_wide(every, _LOG_RANGE):
        axes.set(yscale="log", ylim=_around(every))
    ticks = sorted({x for curve in panel.curves for x, _ in curve.points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.set_xticks([], minor=True)
    axes.set(title=panel.title, xlabel=panel.across, ylabel=title_of(panel.metric))
    axes.grid(visible=True, axis="y")
    axes.legend(fontsize=8)


def _around(values: list[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis, where an interval that reaches zero has no end."""
    finite = [x for x in values if math.isfinite(x)]
    return min(finite) / 1.5, max(finite) * 1.5


def _known(found: Found, row: Row, metric: str) -> list[float]:
    return [factor_of(metric) * x for run in found.runs(row) if (x := getattr(run, metric)) is not None]


def _interval(found: Found, row: Row, metric: str) -> Interval | None:
    return quantity(found.runs(row), metric).interval
