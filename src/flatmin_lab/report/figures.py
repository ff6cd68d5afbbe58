"""Figures of the final numbers: every seed as a dot, paired seeds joined, mean and interval beside them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from flatmin_lab.report import text
from flatmin_lab.report.style import GRID, MUTED, varied
from flatmin_lab.report.summary import REFERENCE
from flatmin_lab.report.svg import RC, panel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flatmin_lab.report.style import MethodStyle, Styles
    from flatmin_lab.report.summary import MethodSummary
    from flatmin_lab.statistics import Interval

_LOG_RANGE = 12.0  # a positive range wider than this is drawn on a logarithmic axis
_SIDE = 0.22  # how far the mean stands beside the seeds
_SIDE_BY_SIDE = 5  # as many names fit below a panel


def seeds_figure(rows: Sequence[MethodSummary], metric: str, styles: Styles) -> Figure | None:
    """One metric by row: a dot for every run, a thin line through each seed's runs, mean and 95 % interval.

    Few rows stand side by side; many, whose names would overlap, lie below each other.

    Args:
        rows: The rows of one task.
        metric: A field of `RunResult`.
        styles: Of every method.

    Returns:
        The figure, in which the dot of a run has the identifier ``seed-<row>-<seed>``; None where no run has the
        metric. A run whose value is NaN or infinite is a cross on the lower edge.
    """
    factor, names = text.METRICS[metric].factor, identifiers(rows)
    values = [
        {r.spec.seed: factor * float(v) for r in row.results if (v := getattr(r, metric)) is not None} for row in rows
    ]
    every = [v for by_seed in values for v in by_seed.values()]
    if not every:
        return None
    upright = len(rows) <= _SIDE_BY_SIDE
    with mpl.rc_context(RC):
        figure, axes = panel() if upright else panel(height=1.0 + 0.36 * len(rows))
        plot = _Plot(axes, upright=upright)
        if is_wide(every, _LOG_RANGE):
            plot.logarithmic()
        for seed in sorted({seed for by_seed in values for seed in by_seed}):
            plot.line([by_seed.get(seed, math.nan) for by_seed in values])
        for i, (row, by_seed, name, style) in enumerate(zip(rows, values, names, looks(rows, styles), strict=True)):
            for seed, value in by_seed.items():
                plot.dot(i, value, style, f"seed-{name}-{seed}")
            interval = row.quantities[metric].interval
            if interval is not None:
                plot.mean(i + _SIDE, interval, factor, style)
        plot.name(text.labels(rows), text.METRICS[metric].title)
    return figure


def differences_figure(rows: Sequence[MethodSummary], styles: Styles) -> Figure | None:
    """Paired differences in test accuracy to the reference: one line a row, a dot a seed, mean and 95 % interval.

    Args:
        rows: The rows of one task.
        styles: Of every method.

    Returns:
        The figure; None where there is no defined difference.
    """
    compared = [
        (label, name, style, d)
        for label, name, style, row in zip(text.labels(rows), identifiers(rows), looks(rows, styles), rows, strict=True)
        if (d := row.differences.get("test_accuracy")) is not None and d.interval is not None
    ]
    if not compared:
        return None
    with mpl.rc_context(RC):
        figure, axes = panel(height=max(3.3, 1.0 + 0.36 * len(compared)))
        plot = _Plot(axes, upright=False)
        axes.axvline(0.0, color=MUTED.light, linewidth=1.0)
        for i, (_, name, style, difference) in enumerate(compared):
            for seed, value in zip(difference.seeds, difference.values, strict=True):
                plot.dot(i, 100 * value, style, f"difference-{name}-{seed}")
            if difference.interval is not None:
                plot.mean(i - _SIDE, difference.interval, 100.0, style)
        plot.name([label for label, *_ in compared], f"Test accuracy − {text.method_label(REFERENCE)} (points)")
    return figure


def identifiers(rows: Sequence[MethodSummary]) -> list[str]:
    """Short names of rows that no two share: the method, with a number from its second row on."""
    methods = [row.method for row in rows]
    earlier = [methods[:i].count(method) for i, method in enumerate(methods)]
    return [f"{method}.{n + 1}" if n else method for method, n in zip(methods, earlier, strict=True)]


def looks(rows: Sequence[MethodSummary], styles: Styles) -> list[MethodStyle]:
    """The look of each row: its method's, with a marker of its own from the second row of a method on."""
    methods = [row.method for row in rows]
    return [varied(styles[method], methods[:i].count(method)) for i, method in enumerate(methods)]


def is_wide(values: Iterable[float], ratio: float) -> bool:
    """Whether positive values span more than ``ratio``, so that they are drawn on a logarithmic axis."""
    finite = [v for v in values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > ratio


class _Plot:
    """Axes on which rows have places along one axis and values along the other: upright, values go upwards."""

    def __init__(self, axes: Axes, *, upright: bool) -> None:
        self._axes, self._upright = axes, upright

    def logarithmic(self) -> None:
        (self._axes.set_yscale if self._upright else self._axes.set_xscale)("log")

    def line(self, values: Sequence[float]) -> None:
        """Join what belongs to one seed."""
        self._draw(range(len(values)), values, color=GRID.light, linewidth=1.1, zorder=1.5)

    def dot(self, place: float, value: float, style: MethodStyle, gid: str) -> None:
        """Draw one run; a cross on the edge where it diverged."""
        if math.isfinite(value):
            look = {"color": style.colour.light, "markersize": 4.6, "alpha": 0.6, "markeredgewidth": 0}
            self._draw(place, value, style.marker, gid=gid, **look)
            return
        axes = self._axes
        edge = axes.get_xaxis_transform() if self._upright else axes.get_yaxis_transform()
        xy = (place, 0.03) if self._upright else (0.03, place)
        look = {"color": style.colour.light, "markersize": 7, "markeredgewidth": 1.8}
        axes.plot(*xy, "x", gid=gid, transform=edge, **look)
        axes.annotate("NaN", xy, xycoords=edge, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)

    def mean(self, place: float, interval: Interval, factor: float, style: MethodStyle) -> None:
        """Mean as a filled marker on its interval; hollow and alone where the interval has no known width."""
        mean, colour = factor * interval.mean, style.colour.light
        if not math.isfinite(mean):
            return
        if interval.is_bounded:
            self._draw((place, place), (factor * interval.low, factor * interval.high), color=colour, linewidth=2.2)
        fill = colour if interval.is_bounded else "none"
        look = {"color": colour, "markersize": 7.5, "markerfacecolor": fill, "markeredgewidth": 1.4}
        self._draw(place, mean, style.marker, **look)

    def name(self, labels: Sequence[str], title: str) -> None:
        """Write what stands where."""
        axes, number = self._axes, len(labels)
        if self._upright:
            axes.set_xticks(range(number), labels)
            axes.set_xlim(-0.4, number - 1 + 0.55)
            axes.set_ylabel(title)
            axes.grid(axis="y")
            axes.tick_params(axis="x", length=0, labelcolor=MUTED.light)
            return
        axes.set_yticks(range(number), labels)
        axes.set_ylim(number - 0.5, -0.6)
        axes.set_xlabel(title)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    def _draw(self, places: Any, values: Any, *style: str, **look: Any) -> None:
        self._axes.plot(*((places, values) if self._upright else (values, places)), *style, **look)
