"""Figures of training: curves against gradient evaluations, and the live trace with its spread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np

from flatmin_lab.report import text
from flatmin_lab.report.figures import identifiers, is_wide, looks
from flatmin_lab.report.svg import RC, legend_above, panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flatmin_lab.report.style import MethodStyle, Styles
    from flatmin_lab.report.summary import MethodSummary
    from flatmin_lab.spec import RunResult

CURVES = {
    "train_loss": "Train loss",
    "validation_accuracy": "Validation accuracy (%)",
    "test_accuracy": "Test accuracy (%)",
    "live_trace": "Live Hessian trace",
    "trace": "Hessian trace",
}
"""What can be drawn against compute: fields of `Point`, with their axis titles."""

_LOG_RANGE = 12.0


def curves_figure(rows: Sequence[MethodSummary], field: str, styles: Styles, *, seconds: bool = False) -> Figure | None:
    """One field of the training histories against compute: every seed thin, the mean over seeds thick.

    With a single seed the live trace carries the band of its own standard error instead of a spread.

    Args:
        rows: The rows of one task.
        field: A key of `CURVES`.
        styles: Of every method.
        seconds: Whether compute is wall time instead of gradient evaluations. Histories do not have it, so the time of
            a run is dealt evenly over its gradient evaluations, and the mean curve is drawn over the mean time.

    Returns:
        The figure, in which the line of a run has the identifier ``curve-<row>-<seed>``; None where no run has it.
    """
    drawn = False
    with mpl.rc_context(RC):
        figure, axes = panel(height=3.5)
        named = zip(text.labels(rows), identifiers(rows), looks(rows, styles), rows, strict=True)
        for label, name, style, row in named:
            runs = [r for r in row.results if np.isfinite(_series(r, field)[1]).any()]
            if runs:
                _draw(axes, runs, field, replace(style, label=label), name, seconds=seconds)
                drawn = True
        if not drawn:
            return None
        _finish(figure, axes, field, "Seconds" if seconds else "Gradient evaluations")
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


def _draw(axes: Axes, runs: Sequence[RunResult], field: str, style: MethodStyle, name: str, *, seconds: bool) -> None:
    colour, paces = style.colour.light, [_pace(run) if seconds else 1.0 for run in runs]
    for run, pace in zip(runs, paces, strict=True):
        x, y = _series(run, field)
        axes.plot(pace * x, y, color=colour, linewidth=0.8, alpha=0.35, gid=f"curve-{name}-{run.spec.seed}")
    if len(runs) == 1 and field == "live_trace":
        x, y = _series(runs[0], field)
        _, error = _series(runs[0], "live_trace_stderr")
        axes.fill_between(paces[0] * x, y - error, y + error, color=colour, alpha=0.2, linewidth=0)
    x, y = mean_curve(runs, field)
    x = x * float(np.mean(paces))
    every = max(1, len(x) // 6)
    line = axes.plot(
        x, y, color=colour, linewidth=2.0, marker=style.marker, markersize=5, markevery=every, label=style.label
    )
    if style.dashes[0] is not None:
        line[0].set_dashes([d for d in style.dashes if d is not None])


def _pace(run: RunResult) -> float:
    """Seconds a gradient evaluation."""
    return run.seconds / max(1, run.gradient_evaluations)


def _finish(figure: Figure, axes: Axes, field: str, compute: str) -> None:
    y = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines])
    if not field.endswith("accuracy") and is_wide(y, _LOG_RANGE):
        axes.set_yscale("log")
    axes.set_xlabel(compute)
    axes.set_ylabel(CURVES[field])
    axes.set_xlim(left=0)
    axes.grid(axis="y")
    legend_above(figure, [str(line.get_label()) for line in axes.lines if not str(line.get_label()).startswith("_")])
