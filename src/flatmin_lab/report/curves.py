"""Figures of training: curves against gradient evaluations, and the live trace with its spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from flatmin_lab.report.style import method_styles
from flatmin_lab.report.summary import runs_of
from flatmin_lab.report.svg import RC, panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flatmin_lab.report.style import MethodStyle
    from flatmin_lab.spec import Comparison, RunResult

CURVES = {
    "train_loss": "Train loss",
    "validation_accuracy": "Validation accuracy (%)",
    "live_trace": "Live Hessian trace",
}
"""What can be drawn against gradient evaluations: fields of `Point`, with their axis titles."""

_LOG_RANGE = 12.0


def curves_figure(comparison: Comparison, task: str, field: str) -> Figure | None:
    """One field of the training histories against gradient evaluations: every seed thin, the mean over seeds thick.

    With a single seed the live trace carries the band of its own standard error instead of a spread.

    Args:
        comparison: What was run.
        task: Which task to draw.
        field: A key of `CURVES`.

    Returns:
        The figure, in which the line of a run has the identifier ``curve-<method>-<seed>``; None where no run has it.
    """
    styles, drawn = method_styles(comparison.spec.methods), []
    with mpl.rc_context(RC):
        figure, axes = panel(height=3.5)
        for method in comparison.spec.methods:
            runs = [r for r in runs_of(comparison, task, method) if np.isfinite(_series(r, field)[1]).any()]
            if runs:
                _draw(axes, runs, field, styles[method])
                drawn.append(styles[method])
        if not drawn:
            return None
        _finish(figure, axes, field)
    return figure


def mean_curve(runs: Sequence[RunResult], field: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean of one field over runs, at the gradient counts that all of them recorded.

    Args:
        runs: Runs of one method on one task.
        field: A field of `Point`.

    Returns:
        Counts and means; NaN where one of the runs has NaN or nothing, so that a diverged seed ends the mean.
    """
    series = [_series(r, field) for r in runs]
    common = sorted(set.intersection(*({int(x) for x in xs} for xs, _ in series)))
    columns = [[dict(zip(xs, ys, strict=True))[x] for x in common] for xs, ys in series]
    values = np.array(columns, dtype=np.float64).reshape(len(runs), len(common))
    return np.array(common), np.where(np.isfinite(values).all(axis=0), values.mean(axis=0), np.nan)


def _series(run: RunResult, field: str) -> tuple[np.ndarray, np.ndarray]:
    factor = 100.0 if field.endswith("accuracy") else 1.0
    values = [getattr(p, field) for p in run.history]
    y = np.array([np.nan if v is None else factor * v for v in values], dtype=np.float64)
    return np.array([p.evaluations for p in run.history]), np.where(np.isfinite(y), y, np.nan)


def _draw(axes: Axes, runs: Sequence[RunResult], field: str, style: MethodStyle) -> None:
    colour = style.colour.light
    for run in runs:
        gid = f"curve-{run.spec.method}-{run.spec.seed}"
        axes.plot(*_series(run, field), color=colour, linewidth=0.8, alpha=0.35, gid=gid)
    if len(runs) == 1 and field == "live_trace":
        x, y = _series(runs[0], field)
        _, error = _series(runs[0], "live_trace_stderr")
        axes.fill_between(x, y - error, y + error, color=colour, alpha=0.2, linewidth=0)
    x, y = mean_curve(runs, field)
    every = max(1, len(x) // 6)
    line = axes.plot(
        x, y, color=colour, linewidth=2.0, marker=style.marker, markersize=5, markevery=every, label=style.label
    )
    if style.dashes[0] is not None:
        line[0].set_dashes([d for d in style.dashes if d is not None])


def _finish(figure: Figure, axes: Axes, field: str) -> None:
    y = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines])
    y = y[np.isfinite(y)]
    if field != "validation_accuracy" and y.size and y.min() > 0 and y.max() / y.min() > _LOG_RANGE:
        axes.set_yscale("log")
    axes.set_xlabel("Gradient evaluations")
    axes.set_ylabel(CURVES[field])
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=4, borderaxespad=0.2, columnspacing=1.4)
