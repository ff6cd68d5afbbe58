"""The ablations in the paper's text: second point, pairs, label smoothing, momentum and decay, schedules of sigma."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.recipes.nso2024.claims import Claim, claims_list, claims_table
from flatmin_lab.recipes.nso2024.published import IN_TEXT
from flatmin_lab.recipes.nso2024.settings import arm, differs, sizes
from flatmin_lab.recipes.outcome import Outcome, written
from flatmin_lab.recipes.studies import Found, Row, Scale, study
from flatmin_lab.recipes.study_tables import metric_table, runs_series
from flatmin_lab.recipes.study_text import diverged_text, heading, tuning_text
from flatmin_lab.spec import Changes
from flatmin_lab.tasks import task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from flatmin_lab.recipes.outcome import Watch

SIZES = sizes(("indoor-resnet34",))

SGD, ONE_SIDED, NSO, SMOOTHED = "SGD", "WP-SGD, two draws", "NSO", "Label smoothing"
PAIRS, PAIRS_LONG = "NSO, k = 2", "NSO, k = 2, as many steps"
SGD_BARE, NSO_BARE = "SGD, no momentum or decay", "NSO, no momentum or decay"
RISING, FALLING = "NSO, σ rising", "NSO, σ falling"

CLAIMS = (
    Claim("−U instead of a second draw", "test_accuracy", NSO, ONE_SIDED, IN_TEXT["two points"], sign=1),
    Claim("−U instead of a second draw", "trace", NSO, ONE_SIDED, relative=True),
    Claim("k = 2 over k = 1, as many steps", "test_accuracy", PAIRS_LONG, NSO, IN_TEXT["two pairs"], sign=1),
    Claim("k = 2 over k = 1, as many steps", "trace", PAIRS_LONG, NSO, relative=True),
    Claim("k = 2 over k = 1, as many gradients", "test_accuracy", PAIRS, NSO),
    Claim("k = 2 over k = 1, as many gradients", "trace", PAIRS, NSO, relative=True),
    Claim("NSO over label smoothing", "trace", NSO, SMOOTHED, IN_TEXT["label smoothing"], relative=True, sign=-1),
    Claim("NSO over label smoothing", "test_accuracy", NSO, SMOOTHED),
    Claim("NSO over SGD, no momentum or decay", "trace", NSO_BARE, SGD_BARE, IN_TEXT["plain"], relative=True, sign=-1),
    Claim("NSO over SGD, no momentum or decay", "test_accuracy", NSO_BARE, SGD_BARE),
    Claim("σ rising over constant", "test_accuracy", RISING, NSO, "no gain"),
    Claim("σ rising over constant", "trace", RISING, NSO, relative=True),
    Claim("σ falling over constant", "test_accuracy", FALLING, NSO, "no gain"),
    Claim("σ falling over constant", "trace", FALLING, NSO, relative=True),
)

_CAPTIONS = {
    "test_accuracy": "Test accuracy in percent.",
    "trace": "Trace of the Hessian of the training loss.",
    "test_loss": "Test loss.",
}


def ablations(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Train by NSO and by what is left when a part of it is taken away or changed.

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
            claims_table("claims", CLAIMS, found, "What the text says, and what was found."),
            *(
                metric_table(one, metric, name=f"{metric.replace('_', '-')}-{one.scale.task}", caption=caption)
                for one in found
                for metric, caption in _CAPTIONS.items()
            ),
        ),
        figures={f"ablations-{one.scale.task}": _drawer(one) for one in found},
        series={"runs": runs_series(found)},
        text="\n\n".join((_paper(), *map(_said, found), _DIFFERS + differs(found))),
    )


def _rows(scale: Scale) -> Iterable[Row]:
    yield Row(SGD, arm(scale, "sgd"))
    yield Row(NSO, arm(scale, "nso"), against=SGD)
    yield Row(ONE_SIDED, arm(scale, "wpsgd"), against=SGD)
    yield Row(PAIRS, arm(scale, "nso-k2"), against=NSO)
    yield Row(PAIRS_LONG, arm(scale, "nso-k2", 2), against=NSO)
    yield Row(SMOOTHED, arm(scale, "ls"), against=SGD)
    plain = without_momentum(scale)
    yield Row(SGD_BARE, arm(scale, "sgd", changes=plain), against=SGD)
    yield Row(NSO_BARE, arm(scale, "nso", changes=plain), against=SGD_BARE)
    yield Row(RISING, arm(scale, "nso-rising"), against=NSO)
    yield Row(FALLING, arm(scale, "nso-falling"), against=NSO)


def without_momentum(scale: Scale) -> Changes:
    """The setting without momentum and decay, its learning rate such that steps add up as far as with momentum."""
    setting = task(scale.task).setting
    return Changes(momentum=0.0, weight_decay=0.0, learning_rate=setting.learning_rate / (1 - setting.momentum))


def _paper() -> str:
    numbers = {name: written(value) for name, value in IN_TEXT.items()}
    return (
        f"**The paper**: two points instead of two one-sided draws add {numbers['two points']} points of accuracy, "
        f"k = 2 instead of k = 1 adds {numbers['two pairs']}; NSO's trace differs from label smoothing's by "
        f"{numbers['label smoothing']} %, and from SGD's by {numbers['plain']} % where both have neither momentum nor "
        "weight decay; schedules of σ do not gain (Remark 3.1)."
    )


def _said(one: Found) -> str:
    listed = claims_list((claim for claim in CLAIMS if claim.printed), one)
    rest = " ".join(filter(None, (tuning_text(one), diverged_text(one))))
    return f"{heading(one)}:\n\n{listed}\n\n{rest}"


_DIFFERS = (
    "**What differs from the paper**: σ and α are chosen for each row by itself. Without momentum the learning rate is "
    "divided by 1 − momentum, so that steps add up as far. Where the text does not say against what a number is meant, "
    "it is read as the rows of the table say. σ rises from near zero to its value or falls from it to zero, along a "
    "straight line over the steps. The trace is that of the loss without label smoothing for every row; a network that "
    "smoothing keeps from certainty has a large one. "
)


def _drawer(one: Found) -> Callable[[], Figure]:
    from flatmin_lab.recipes.study_figures import rows_figure

    return lambda: rows_figure(one, ("test_accuracy", "trace"))
