"""Two-point noise at the price of SGD: how much of NSO's effect is kept where +U and -U fall on halves of one batch.

Not in the paper. NSO takes two gradients of a batch a step, one at W + U and one at W - U. Dealt over the two halves of
the batch (``flatmin.attach``) they cost what one gradient costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.recipes.nso2024.settings import published_budget
from flatmin_lab.recipes.nso2024.shares import Share, kept_share
from flatmin_lab.recipes.outcome import Cell, Outcome, Table, written
from flatmin_lab.recipes.studies import Found, Row, Scale, study
from flatmin_lab.recipes.study_tables import metric_table, runs_series
from flatmin_lab.spec import Arm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from flatmin_lab.recipes.outcome import Watch

SIZES = {
    "toy": (Scale("digits-tiny", seeds=3, budget=60),),
    "small": (
        Scale("digits-clean", seeds=20, budget=1200),
        Scale("digits-noisy", seeds=20, budget=1200),
        Scale("cifar10-jpeg75-resnet20", seeds=6, budget=300),
    ),
    "paper": (Scale("cifar10-resnet34", seeds=3, budget=published_budget(45_000) // 2),),
}

SGD, HALVES, NSO, SHORT, PAIRED = "SGD", "SGD, halves", "NSO", "NSO, half the steps", "paired halves"

WANTED = 0.9
"""The share that is to be kept."""

_METRICS = {
    "test_accuracy": "Test accuracy in percent.",
    "trace": "Trace of the Hessian of the training loss.",
    "test_loss": "Test loss.",
}


def pairing(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Train by SGD, by NSO with as many steps, and by paired halves with as many gradients.

    Args:
        size: A key of `SIZES`.
        seed: The first of the paired seeds.
        watch: Told of the progress.
        folder: Where finished runs are kept.
        tasks: Only these; empty for all.

    Raises:
        ArgumentError: There is no such size or task.
        DataError: The data are not there.
    """
    found = study(SIZES, _rows, size=size, seed=seed, watch=watch, folder=folder, tasks=tasks)
    return Outcome(
        tables=(
            _shares(found),
            *(
                metric_table(one, metric, name=f"{metric.replace('_', '-')}-{one.scale.task}", caption=caption)
                for one in found
                for metric, caption in _METRICS.items()
            ),
        ),
        figures={f"pairing-{one.scale.task}": _drawer(one) for one in found},
        series={"runs": runs_series(found)},
        text="\n\n".join((_ABOUT, *map(_said, found), _DIFFERS)),
    )


def _rows(scale: Scale) -> Iterable[Row]:
    def arm(method: str, factor: int = 1) -> Arm:
        return Arm(task=scale.task, method=method, budget=factor * scale.budget)

    yield Row(SGD, arm("sgd"))
    yield Row(HALVES, arm("sgd-halves"), against=SGD)
    yield Row(NSO, arm("nso", 2), against=SGD)
    yield Row(SHORT, arm("nso"), against=SGD)
    yield Row(PAIRED, arm("nso-halves"), against=NSO)


def share(one: Found, metric: str) -> Share:
    """Which share of NSO's change of a metric paired halves keep, both against SGD, by seed.

    Halves are compared with SGD on halves: what batch-norm makes of smaller batches is not the noise's doing.
    """
    values = {
        label: {run.spec.seed: getattr(run, metric) for run in one.runs(one.row(label))}
        for label in (SGD, HALVES, NSO, PAIRED)
    }
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    return kept_share(
        [values[PAIRED][s] - values[HALVES][s] for s in seeds],
        [values[NSO][s] - values[SGD][s] for s in seeds],
    )


def _shares(found: list[Found]) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for one in found:
        for metric in ("trace", "test_accuracy", "test_loss"):
            kept = share(one, metric)
            percent = tuple(100 * x for x in (kept.share, kept.low, kept.high))
            lines.append((one.scale.task, metric.replace("_", " "), *percent, kept.verdict(WANTED)))
    caption = (
        f"Share, in percent, of NSO's change that paired halves keep, with Fieller's 95 % interval; asked is "
        f"{100 * WANTED:g} %. NSO has twice the gradient evaluations and as many steps."
    )
    return Table(
        "shares", ("task", "of", "kept", "95 % from", "to", f"at least {100 * WANTED:g} %"), tuple(lines), caption
    )


def _said(one: Found) -> str:
    effects = []
    for metric, what in (("trace", "trace"), ("test_accuracy", "test accuracy")):
        kept = share(one, metric)
        effects.append(
            f"of the change of the {what} {written(100 * kept.share)} % is kept "
            f"({written(100 * kept.low)} to {written(100 * kept.high)} %; {kept.verdict(WANTED)})"
        )
    means = {label: one.mean(label, "trace") for label in (SGD, HALVES, NSO, SHORT, PAIRED)}
    accuracies = {label: 100 * one.mean(label, "test_accuracy") for label in means}
    listed = ", ".join(f"{k} {written(means[k])} and {written(accuracies[k])} %" for k in means)
    return (
        f"**{one.scale.task}** ({one.scale.seeds} seeds, {one.scale.budget} gradient evaluations a run, NSO also twice "
        f"as many): {'; '.join(effects)}. Mean trace and test accuracy: {listed}."
    )


_ABOUT = (
    "**Asked**: do the two points of NSO, dealt over the two halves of a batch (`flatmin.attach`, the price of SGD), "
    f"keep at least {100 * WANTED:g} % of the reduction of the trace and of the gain in accuracy that NSO has with "
    "as many steps and twice as many gradients? The paper does not ask this."
)
_DIFFERS = (
    "σ is chosen on validation data for NSO and for paired halves alike. *SGD, halves* deals batches in the same way "
    "without noise: with batch-norm that alone changes the result, and paired halves are compared with it. Where NSO "
    "itself changes little, a share of its change is not defined well: the interval is then wide or without bounds."
)


def _drawer(one: Found) -> Callable[[], Figure]:
    from flatmin_lab.recipes.study_figures import rows_figure

    return lambda: rows_figure(one, ("test_accuracy", "trace"))
