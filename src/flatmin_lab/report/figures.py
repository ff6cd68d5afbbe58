"""Figures of the final numbers: every seed as a dot, paired seeds joined, mean and interval beside them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from flatmin_lab.report import text
from flatmin_lab.report.style import GRID, MUTED, method_styles
from flatmin_lab.report.summary import REFERENCE, quantity, runs_of, summarise
from flatmin_lab.report.svg import RC, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flatmin_lab.report.style import MethodStyle
    from flatmin_lab.spec import Comparison
    from flatmin_lab.statistics import Interval

_LOG_RANGE = 12.0  # a positive range wider than this is drawn on a logarithmic axis
_SIDE = 0.22  # how far the mean stands beside the seeds


def seeds_figure(comparison: Comparison, task: str, metric: str) -> Figure | None:
    """One metric by method: a dot for every run, a thin line through each seed's runs, mean and 95 % interval.

    Args:
        comparison: What was run.
        task: Which task to draw.
        metric: A field of `RunResult`.

    Returns:
        The figure, in which the dot of a run has the identifier ``seed-<method>-<seed>``; None where no run has the
        metric. A run whose value is NaN or infinite is a cross on the lower edge.
    """
    methods = comparison.spec.methods
    runs = {m: runs_of(comparison, task, m) for m in methods}
    factor, styles = text.METRICS[metric].factor, method_styles(methods)
    values = {
        (m, r.spec.seed): factor * float(v) for m in methods for r in runs[m] if (v := getattr(r, metric)) is not None
    }
    if not values:
        return None
    with mpl.rc_context(RC):
        figure, axes = panel()
        if _is_wide(list(values.values())):
            axes.set_yscale("log")
        _join_pairs(axes, values, methods)
        for i, method in enumerate(methods):
            for (m, seed), value in values.items():
                if m == method:
                    _dot(axes, i, value, styles[method], f"seed-{method}-{seed}")
            interval = quantity(runs[method], metric).interval
            if interval is not None:
                _mean(axes, i + _SIDE, interval, factor, styles[method])
        axes.set_xticks(range(len(methods)), [styles[m].label for m in methods])
        axes.set_xlim(-0.4, len(methods) - 1 + 0.55)
        axes.set_ylabel(text.METRICS[metric].title)
        axes.grid(axis="y")
        axes.tick_params(axis="x", length=0, labelcolor=MUTED.light)
    return figure


def differences_figure(comparison: Comparison, task: str) -> Figure | None:
    """Paired differences in test accuracy to the reference: one row a method, a dot a seed, mean and 95 % interval.

    Args:
        comparison: What was run.
        task: Which task to draw.

    Returns:
        The figure; None where there is no defined difference.
    """
    rows = [s for s in summarise(comparison) if s.task == task and s.method != REFERENCE]
    found = [(s.method, d) for s in rows if (d := s.differences["test_accuracy"]).interval is not None]
    if not found:
        return None
    styles = method_styles(comparison.spec.methods)
    with mpl.rc_context(RC):
        figure, axes = panel()
        axes.axvline(0.0, color=MUTED.light, linewidth=1.0)
        for i, (method, difference) in enumerate(found):
            for seed, value in zip(difference.seeds, difference.values, strict=True):
                gid = f"difference-{method}-{seed}"
                axes.plot(100 * value, i, styles[method].marker, gid=gid, **_dot_look(styles[method]))
            interval = difference.interval
            if interval is not None:
                _mean(axes, i - _SIDE, interval, 100.0, styles[method], horizontal=True)
        axes.set_yticks(range(len(found)), [styles[m].label for m, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.6)
        axes.set_xlabel(f"Test accuracy − {text.method_label(REFERENCE)} (points)")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def _join_pairs(axes: Axes, values: dict[tuple[str, int], float], methods: tuple[str, ...]) -> None:
    for seed in sorted({seed for _, seed in values}):
        line = [values.get((m, seed), math.nan) for m in methods]
        axes.plot(range(len(methods)), line, color=GRID.light, linewidth=1.1, zorder=1.5)


def _dot(axes: Axes, x: float, value: float, style: MethodStyle, gid: str) -> None:
    if math.isfinite(value):
        axes.plot(x, value, style.marker, gid=gid, **_dot_look(style))
        return
    edge = axes.get_xaxis_transform()  # y in axes units: the lower edge, whatever the scale
    axes.plot(x, 0.03, "x", gid=gid, transform=edge, color=style.colour.light, markersize=7, markeredgewidth=1.8)
    axes.annotate("NaN", (x, 0.03), xycoords=edge, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)


def _dot_look(style: MethodStyle) -> dict[str, Any]:
    return {"color": style.colour.light, "markersize": 4.6, "alpha": 0.6, "markeredgewidth": 0}


def _mean(
    axes: Axes, at: float, interval: Interval, factor: float, style: MethodStyle, *, horizontal: bool = False
) -> None:
    """Mean as a filled marker on its interval; hollow and alone where the interval has no known width."""
    mean = factor * interval.mean
    if not math.isfinite(mean):
        return
    colour = style.colour.light
    if interval.is_bounded:
        ends = (factor * interval.low, factor * interval.high)
        axes.plot(*((ends, (at, at)) if horizontal else ((at, at), ends)), color=colour, linewidth=2.2)
    xy = (mean, at) if horizontal else (at, mean)
    fill = colour if interval.is_bounded else "none"
    axes.plot(*xy, style.marker, color=colour, markersize=7.5, markerfacecolor=fill, markeredgewidth=1.4)


def _is_wide(values: list[float]) -> bool:
    finite = [v for v in values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOG_RANGE
