"""Figure 5: NSO and SAM over batch sizes; and NSO added to augmentation and to a penalty on the distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.nso2024.claims import Claim, claims_list, claims_table, claims_text
from flatmin_lab.recipes.nso2024.settings import GROUNDS, arm, differs, sizes
from flatmin_lab.recipes.outcome import Outcome, written
from flatmin_lab.recipes.studies import Found, Row, Scale, study
from flatmin_lab.recipes.study_tables import metric_table, runs_series
from flatmin_lab.recipes.study_text import diverged_text, heading
from flatmin_lab.spec import Changes
from flatmin_lab.tasks import task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from flatmin_lab.recipes.outcome import Watch

SIZES = sizes(("aircraft-resnet34", "indoor-resnet34"), seeds=5)

BATCHES = (8, 16, 32, 64)
PENALTY = 0.01
"""Strength of half the squared distance to the first weights; the paper's is not in its text."""

_CAPTIONS = {
    "trace": "Trace of the Hessian of the training loss, without the penalty.",
    "test_loss": "Test loss.",
    "test_accuracy": "Test accuracy in percent.",
}


def fig5(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Train by NSO and SAM with every batch size, and by SGD and NSO with either regularizer.

    Args:
        size: A key of `SIZES`.
        seed: The first of the paired seeds.
        watch: Told of the progress.
        folder: Where finished runs are kept.
        tasks: Only these; empty for all.

    Raises:
        ArgumentError: There is no such size or task.
        DataError: The data are not there.
        LabError: A task is not part of this version.
    """
    found = study(SIZES, _rows, size=size, seed=seed, watch=watch, folder=folder, tasks=tasks)
    return Outcome(
        tables=(
            *(claims_table(f"batches-{x.scale.task}", over_sam(x.scale), [x], "NSO over SAM.") for x in found),
            *(claims_table(f"combined-{x.scale.task}", combined(x.scale), [x], _COMBINED) for x in found),
            *(
                metric_table(one, metric, name=f"{metric.replace('_', '-')}-{one.scale.task}", caption=caption)
                for one in found
                for metric, caption in _CAPTIONS.items()
            ),
        ),
        figures={f"fig5-{one.scale.task}": _drawer(one) for one in found},
        series={"runs": runs_series(found)},
        text="\n\n".join((_paper(), *map(_said, found), _DIFFERS + differs(found))),
    )


def steps(scale: Scale, batch: int) -> int:
    """Steps of a run with this batch size: those that see as many examples as a run with the task's.

    The last batch of an epoch is smaller where the size does not divide the number of examples, so that what is equal
    is the number of epochs.
    """
    examples = GROUNDS[scale.task].examples
    epochs = scale.budget / 2 / math.ceil(examples / task(scale.task).setting.batch_size)
    return round(epochs * math.ceil(examples / batch))


def batches(scale: Scale) -> tuple[int, ...]:
    """The batch sizes that are tried."""
    return BATCHES[-(GROUNDS[scale.task].tried or 0) :]


def additions(scale: Scale) -> dict[str, Changes]:
    """What is added to a method: a name to the change of the setting."""
    augmented = {"augmentation": Changes(augmentation="flip-crop")} if GROUNDS[scale.task].colour else {}
    return augmented | {"distance penalty": Changes(distance_penalty=PENALTY)}


def _rows(scale: Scale) -> Iterable[Row]:
    ground = GROUNDS[scale.task]
    for size in batches(scale):
        longer = 2 * steps(scale, size) / scale.budget
        yield Row(_batch("SAM", size), arm(scale, "sam", longer, value=ground.rho, changes=Changes(batch_size=size)))
        mine = arm(scale, "nso", longer, value=ground.sigma, changes=Changes(batch_size=size))
        yield Row(_batch("NSO", size), mine, against=_batch("SAM", size))
    yield Row("SGD", arm(scale, "sgd"))
    yield Row("NSO", arm(scale, "nso", value=ground.sigma), against="SGD")
    for name, changes in additions(scale).items():
        base = _with("SGD", name)
        yield Row(base, arm(scale, "sgd", changes=changes), against="SGD")
        yield Row(_with("NSO", name), arm(scale, "nso", value=ground.sigma, changes=changes), against=base)


def _batch(method: str, size: int) -> str:
    return f"{method}, batch {size}"


def _with(method: str, addition: str) -> str:
    return f"{method}, {addition}"


def over_sam(scale: Scale) -> list[Claim]:
    """NSO over SAM with every batch size."""
    return [
        Claim(f"batch {n}", metric, _batch("NSO", n), _batch("SAM", n), "lower", relative=True, sign=-1)
        for metric in ("trace", "test_loss")
        for n in batches(scale)
    ]


def combined(scale: Scale) -> list[Claim]:
    """NSO added to SGD with either regularizer, and either regularizer added to NSO."""
    claims = []
    for metric, printed in published.COMBINED.items():
        claims.append(Claim("NSO over SGD", metric, "NSO", "SGD", relative=True))
        for name in additions(scale):
            mine, theirs = _with("NSO", name), _with("SGD", name)
            claims.append(
                Claim(f"NSO over SGD, both with {name}", metric, mine, theirs, printed, relative=True, sign=-1)
            )
            claims.append(Claim(f"{name} added to NSO", metric, mine, "NSO", relative=True))
    return claims


_COMBINED = "NSO beside other regularizers; the paper's number is one for augmentation and distance penalty together."


def _paper() -> str:
    trace, loss = (written(published.COMBINED[metric]) for metric in ("trace", "test_loss"))
    return (
        "**The paper** (Indoor, Aircraft): NSO has a smaller trace and test loss than SAM with each batch size from "
        f"{BATCHES[0]} to {BATCHES[-1]}. Added to augmentation and to distance-based regularization it changes the "
        f"trace by {trace} % and the test loss by {loss} %."
    )


def _said(one: Found) -> str:
    ground, listed = GROUNDS[one.scale.task], over_sam(one.scale)
    added = [claim for claim in combined(one.scale) if claim.against != "NSO"]
    said = (
        f"{heading(one)}: σ = {ground.sigma:g}, ρ = {ground.rho:g}. NSO over SAM in trace: "
        f"{claims_text((c for c in listed if c.metric == 'trace'), one)} In test loss: "
        f"{claims_text((c for c in listed if c.metric == 'test_loss'), one)}"
    )
    return "\n\n".join(filter(None, (said, claims_list(added, one), diverged_text(one))))


_DIFFERS = (
    "**What differs from the paper**: σ and ρ are fixed at one value for all batch sizes, and so is the learning rate, "
    "so that smaller batches take more steps and go further: methods are compared at a batch size, not batch sizes "
    "with each other. All see as many examples. The penalty is half the squared distance to the first weights, of one "
    f"strength, {PENALTY:g}, since the paper's is not in its text. Augmentation mirrors and cuts colour images at "
    "random; digits get none, as mirroring changes their class. "
)


def _drawer(one: Found) -> Callable[[], Figure]:
    from flatmin_lab.recipes.study_figures import Curve, Panel, curves_figure

    curves = tuple(
        Curve(method, tuple((float(n), one.row(_batch(method, n))) for n in batches(one.scale)))
        for method in ("SAM", "NSO")
    )
    panels = [Panel("", metric, "batch size", curves) for metric in _CAPTIONS]
    return lambda: curves_figure(one, [panels])
