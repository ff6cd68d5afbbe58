"""What is said of Tables 3 and 6, its numbers taken from the runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flatmin_lab.methods import METHODS
from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.outcome import written
from flatmin_lab.report.summary import ALPHA, REFERENCE, paired_difference, quantity, runs_of
from flatmin_lab.report.text import METRICS, SYMBOLS, Metric, interval_texts
from flatmin_lab.tasks import task

if TYPE_CHECKING:
    from flatmin_lab.spec import Comparison

_NSO = "nso"
_POINTS = Metric("accuracy", "points", 100.0, 1)


def text(found: Comparison) -> str:
    """Say what the paper says, what was found, and how the two differ."""
    return "\n\n".join((_paper(), _here(found), _tuning(found), _differs(found)))


def _paper() -> str:
    traces = published.TABLES_3_AND_6["trace"]
    others = [min(row[i] for way, row in traces.items() if way != _NSO) for i in range(len(published.DATA_SETS))]
    gains = [1 - mine / best for mine, best in zip(traces[_NSO], others, strict=True)]
    return (
        f"**The paper**: fine-tuned on six data sets, NSO has the smallest trace, {100 * min(gains):.1f} to "
        f"{100 * max(gains):.1f} % below the best of the others, and the best accuracy{_but()}."
    )


def _but() -> str:
    """Name the data sets on which another method is printed with a better accuracy."""
    printed = published.TABLES_3_AND_6["test_accuracy"]
    lost = []
    for i, data in enumerate(published.DATA_SETS):
        best = max(printed, key=lambda way: printed[way][i])
        if best != _NSO:
            lost.append(f"{data} ({METHODS[best].label} {printed[best][i]:.1f} %, NSO {printed[_NSO][i]:.1f} %)")
    return f" but on {' and '.join(lost)}" if lost else ""


def _here(found: Comparison) -> str:
    spec = found.spec
    said = [
        f"**Here** ({task(spec.tasks[0]).summary}; {spec.budgets[0]} gradient evaluations a run, {spec.seeds} seeds): "
        + _against(found, REFERENCE, "over SGD")
    ]
    for metric, best, what in (("test_accuracy", max, "most accurate"), ("trace", min, "flattest")):
        means = {way: _mean(found, way, metric) for way in spec.methods if way != _NSO}
        means = {way: mean for way, mean in means.items() if math.isfinite(mean)}
        if means:
            way = best(means, key=lambda name: means[name])
            compared = "." if way == REFERENCE else f"; {_against(found, way, 'over it')}"
            said.append(f"The {what} of the others is {METHODS[way].label}{compared}")
    lost = [f"{r.spec.method} (seed {r.spec.seed})" for r in found.results if r.status == "diverged"]
    if lost:
        said.append(f"Diverged: {', '.join(lost)}.")
    return " ".join(said)


def _against(found: Comparison, other: str, over: str) -> str:
    """Return NSO's paired differences to another method, with what the test can say."""
    (on,) = found.spec.tasks
    parts = []
    for metric, how in (("test_accuracy", _POINTS), ("trace", METRICS["trace"])):
        difference = paired_difference(runs_of(found, on, _NSO), runs_of(found, on, other), metric)
        if difference.interval is None or difference.test is None:
            parts.append(f"in {how.label} it is undefined, as {difference.why_undefined}")
            continue
        mean, bracket = interval_texts(difference.interval, how, signed=True)
        test = difference.test
        p = f"p = {written(test.p)}"
        if not test.can_reach(ALPHA):
            p += f", of which these seeds could reach {written(test.reachable)} at best"
        unit = f" {how.unit}" if how.unit else ""
        parts.append(f"in {how.label.lower().replace('hessian', 'Hessian')} {mean}{unit} {bracket} ({p})")
    return f"the difference of NSO {over} is {' and '.join(parts)}."


def _tuning(found: Comparison) -> str:
    chosen = [f"{METHODS[s.method].label} {SYMBOLS[s.hyperparameter]} = {s.chosen:g}" for s in found.selections]
    edges = [METHODS[s.method].label for s in found.selections if s.chosen in (s.grid[0], s.grid[-1])]
    at_the_edge = (
        f" At an end of its grid, so that a better value may lie beyond: {', '.join(edges)}."
        if edges
        else " None lies at an end of its grid."
    )
    return (
        f"**Tuning**: by validation accuracy over two seeds, four values for each method: {', '.join(chosen)}."
        + at_the_edge
    )


def _differs(found: Comparison) -> str:
    (on,) = found.spec.tasks
    setting, measured = task(on).setting, task(on).measuring.examples
    return (
        "**What differs from the paper**: data and network, so that only the order of the methods and the signs of "
        "differences can be compared, not the numbers. All methods have one number of gradient evaluations, so "
        "that SGD and label smoothing make twice as many steps as the others. The base optimizer is "
        f"the same for all (SGD, learning rate {setting.learning_rate:g}, momentum {setting.momentum:g}, weight decay "
        f"{setting.weight_decay:g}, batch size {setting.batch_size}, cosine) and is not tuned. RSAM and BSAM restore "
        "the weights after their ascent, which the authors' code does not; BSAM is that of its own paper. Trace and "
        "largest eigenvalue are of all parameters in evaluation mode"
        + (f", on the first {measured} training examples" if measured else "")
        + "; the paper's λ₁ is no eigenvalue and is listed under the authors' name."
    )


def _mean(found: Comparison, way: str, metric: str) -> float:
    interval = quantity(runs_of(found, found.spec.tasks[0], way), metric).interval
    return math.nan if interval is None else interval.mean
