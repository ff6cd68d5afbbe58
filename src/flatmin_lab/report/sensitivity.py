"""How much the choice of a number matters: every run of a grid, and of a change of setting, against that number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from flatmin_lab.methods import METHODS
from flatmin_lab.report import text
from flatmin_lab.report.figures import is_wide
from flatmin_lab.report.style import varied
from flatmin_lab.report.svg import RC, legend_above, panel
from flatmin_lab.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flatmin_lab.report.style import Styles
    from flatmin_lab.spec import Comparison, RunResult, RunSpec

METRICS = {
    "validation_accuracy": text.Metric("Validation accuracy", "%", 100.0),
    "test_accuracy": text.METRICS["test_accuracy"],
    "trace": text.METRICS["trace"],
}
"""What is drawn: fields of `RunResult`. The trace is known of final runs only."""

CHANGED = ("learning_rate", "momentum", "weight_decay", "batch_size", "distance_penalty")
"""Fields of `Changes` that are numbers."""

_LOG_RANGE = 12.0


@dataclass(frozen=True)
class Line:
    """One curve: a method with everything but one number held fixed.

    Attributes:
        axis: Which number: ``sigma``, ``rho``, ``alpha`` or one of `CHANGED`.
        method: Its name.
        label: The method and what tells this line from its others.
        runs: All of them, at two values or more.
    """

    axis: str
    method: str
    label: str
    runs: tuple[RunResult, ...]

    def points(self, metric: str) -> dict[float, list[float]]:
        """Values of a metric by that number, in its order; those not measured are left out."""
        found: dict[float, list[float]] = {}
        for run in self.runs:
            at, value = coordinate(run.spec, self.axis), getattr(run, metric)
            if at is not None and value is not None:
                found.setdefault(at, []).append(METRICS[metric].factor * value)
        return dict(sorted(found.items()))


def lines(comparison: Comparison, task: str) -> list[Line]:
    """Find every number that was varied on a task with all else equal.

    Args:
        comparison: What was run.
        task: Name of the task.

    Returns:
        The lines, those of one axis after each other.
    """
    final = [r for r in comparison.results if r.spec.task == task]
    every = {r.spec: r for r in (*comparison.tuning, *final) if r.spec.task == task}.values()
    chosen = {(s.method, s.budget, s.changes, s.chosen) for s in comparison.selections if s.task == task}

    def without_choice(spec: RunSpec) -> RunSpec:
        key = (spec.method, spec.budget, spec.changes, spec.value)
        return spec.model_copy(update={"value": None}) if key in chosen else spec

    return [
        *(line for axis in ("sigma", "rho", "alpha") for line in _lines(every, axis, lambda spec: spec)),
        *(line for axis in CHANGED for line in _lines(final, axis, without_choice)),
    ]


def coordinate(spec: RunSpec, axis: str) -> float | None:
    """The number of a run: its value if it is that of the axis, or what its setting says."""
    if axis not in CHANGED:
        return spec.value if spec.method in METHODS and METHODS[spec.method].hyperparameter == axis else None
    given = getattr(spec.changes, axis)
    if given is None and spec.task in TASKS:
        given = getattr(TASKS[spec.task].setting, axis, None)
    return None if given is None else float(given)


def sensitivity_figure(found: Sequence[Line], metric: str, styles: Styles) -> Figure | None:
    """One metric against one number: every run a dot, the mean over seeds joined.

    Args:
        found: Lines of one axis.
        metric: A key of `METRICS`.
        styles: Of every method.

    Returns:
        The figure; None where no line has the metric at two values.
    """
    drawn = [(line, points) for line in found if len(points := line.points(metric)) > 1]
    if not drawn:
        return None
    with mpl.rc_context(RC):
        figure, axes = panel(height=3.5)
        methods = [line.method for line, _ in drawn]
        for i, (line, points) in enumerate(drawn):
            style = varied(styles[line.method], methods[:i].count(line.method))
            _draw(axes, points, style.colour.light, marker=style.marker, label=line.label)
        places = [x for _, points in drawn for x in points]
        if min(places) > 0:
            axes.set_xscale("log")
            axes.set_xticks(sorted(set(places)), [f"{x:g}" for x in sorted(set(places))])
            axes.minorticks_off()
        if metric == "trace" and is_wide((y for _, p in drawn for ys in p.values() for y in ys), _LOG_RANGE):
            axes.set_yscale("log")
        axes.set_xlabel(axis_label(drawn[0][0].axis))
        axes.set_ylabel(METRICS[metric].title)
        axes.grid(axis="y")
        legend_above(figure, [line.label for line, _ in drawn])
    return figure


def axis_label(axis: str) -> str:
    """How a number is called in print."""
    return text.SYMBOLS.get(axis) or axis.replace("_", " ").capitalize()


def _draw(axes: Axes, points: dict[float, list[float]], colour: str, **look: Any) -> None:
    for x, ys in points.items():
        axes.plot([x] * len(ys), ys, look["marker"], color=colour, markersize=3.6, alpha=0.45, markeredgewidth=0)
    means = [float(np.mean(ys)) for ys in points.values()]  # NaN where a run diverged: the line stops there
    axes.plot(list(points), means, color=colour, linewidth=1.8, markersize=6, **look)


def _lines(runs: Iterable[RunResult], axis: str, held: Callable[[RunSpec], RunSpec]) -> Iterator[Line]:
    """Group runs by all that is held fixed; a value chosen anew in each setting is no difference between settings."""
    groups: dict[RunSpec, list[RunResult]] = {}
    for run in runs:
        if coordinate(run.spec, axis) is not None:
            groups.setdefault(_all_else(held(run.spec), axis), []).append(run)
    varied = {key: g for key, g in groups.items() if len({coordinate(r.spec, axis) for r in g}) > 1}
    for key, group in varied.items():
        others = [other for other in varied if other.method == key.method]
        yield Line(axis, key.method, ", ".join([text.method_label(key.method), *_apart(key, others)]), tuple(group))


def _all_else(spec: RunSpec, axis: str) -> RunSpec:
    if axis in CHANGED:
        return spec.model_copy(update={"seed": 0, "changes": spec.changes.model_copy(update={axis: None})})
    return spec.model_copy(update={"seed": 0, "value": None})


def _apart(key: RunSpec, others: Sequence[RunSpec]) -> Iterator[str]:
    """What tells a line from the other lines of its method."""
    if len({o.value for o in others}) > 1 and key.value is not None:
        yield f"{key.value:g}"
    if len({o.changes.name for o in others}) > 1 and key.changes.name:
        yield key.changes.name.replace("_", " ")
    if len({o.budget for o in others}) > 1:
        yield f"{key.budget} gradients"
