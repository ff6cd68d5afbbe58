"""Error against cost."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes

from curvature.numbers import TARGET, Stored, runs_of, trace_rows

mpl.use("Agg")
_COLOURS = {"PyHessian": "#8c6bb1", "curvlinops": "#2b8cbe", "eigenthings": "#41ab5d", "flatmin": "#d7301f"}
_LINES = {"hutchinson": ":", "hutch++": "--", "xtrace": "-."}
_MARKS = {
    "auto": "*",
    "deflated": "D",
    "hutch++": "s",
    "xtrace": "^",
    "hutchinson": "o",
    "control": "P",
    "forward": "X",
}
_FLOOR = 1e-4  # where exact results are drawn


def draw(found: dict[str, Stored], path: Path) -> None:
    """Draw a panel for each problem."""
    from matplotlib import pyplot as plt  # noqa: PLC0415

    columns = 3 if len(found) > 4 else 2
    figure, axes = plt.subplots(
        math.ceil(len(found) / columns), columns, figsize=(4.4 * columns, 3.6 * math.ceil(len(found) / columns)),
        squeeze=False, sharey=True, layout="constrained",
    )  # fmt: skip
    panels = axes.flatten()
    for axis, stored in zip(panels, found.values(), strict=False):
        _panel(axis, stored)
    for axis in panels[len(found) :]:
        axis.axis("off")
    handles: dict[str, object] = {}
    for axis in panels[: len(found)]:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _panel(axis: Axes, stored: Stored) -> None:
    runs = runs_of(stored, 1)
    study = stored["study"]
    for (tool, quantity, method), timed in runs.items():
        if quantity != "trace" or tool == "flatmin" or method not in _LINES:
            continue
        setup = median(run["setup"] for run in timed)
        each = median(run["run"] / run["products"] for run in timed)
        if method == "hutchinson":
            counts = [2.0**i for i in range(14)]
            errors = [study["probe_error"] / math.sqrt(n) for n in counts]
        else:
            counts, errors = (list(column) for column in zip(*_points(study, method), strict=True))
        costs = [setup + each * n for n in counts]
        axis.plot(costs, errors, _LINES[method], color=_COLOURS[tool], label=f"{tool} {method}", linewidth=1.3)
    for row in trace_rows(stored, 1):
        if row.tool == "flatmin":
            mark = _MARKS.get(row.method, "v")
            size = 15 if row.method == "auto" else 6
            error = max(row.error, _FLOOR)
            axis.plot(row.cost, error, mark, color=_COLOURS["flatmin"], label=f"flatmin {row.method}", markersize=size)
    axis.axhline(TARGET, color="0.7", linewidth=0.8, zorder=0)
    axis.set(xscale="log", yscale="log", xlim=(1, 2e4), ylim=(_FLOOR * 0.7, 1), title=stored["problem"]["title"])
    axis.set_xlabel("cost in gradients")
    axis.set_ylabel("relative error of the trace (at the bottom: exact)", fontsize=8)


def _points(study: Stored, method: str) -> list[tuple[float, float]]:
    return [(float(m), error) for m, error in study["needed"][method]["curve"].items()]
