"""Tables 3 and 6: accuracy, trace and largest eigenvalue of SGD, label smoothing, the SAM family and NSO.

The runs are those of ``flatmin compare``, with its budgets, its tuning and its paired seeds, in a folder of their own
that ``flatmin report`` reads too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flatmin.checks import choice
from flatmin_lab.compare import check, compare
from flatmin_lab.errors import LabError
from flatmin_lab.methods import METHODS
from flatmin_lab.recipes.counting import Counting
from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.nso2024.table3_drawings import draw
from flatmin_lab.recipes.nso2024.table3_text import text
from flatmin_lab.recipes.outcome import Cell, Outcome, Table
from flatmin_lab.recipes.studies import Scale, require
from flatmin_lab.report.summary import REFERENCE, paired_difference, quantity, runs_of
from flatmin_lab.report.text import METRICS
from flatmin_lab.spec import Comparison, Study
from flatmin_lab.store import Store
from flatmin_lab.sweep import num_cores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flatmin_lab.recipes.outcome import Watch

WAYS = ("sgd", "ls", "sam", "usam", "asam", "rsam", "bsam", "nso")
"""The rows, as they are printed."""


SIZES = {
    "toy": (Scale("digits-tiny", seeds=2, budget=60),),
    "small": (Scale("cifar10-jpeg75-resnet20", seeds=6, budget=600),),
}

_CAPTIONS = {
    "test_accuracy": "Test accuracy in percent.",
    "trace": "Trace of the Hessian of the training loss, of all parameters; the paper's leaves some out.",
    "top_eigenvalue": "The largest eigenvalue of the same Hessian, which the paper does not have.",
    "authors_lambda": "What the paper calls λ₁, computed as its authors' code does; it is no eigenvalue.",
}
_COLUMNS = ("method", "value", "here", "95 % from", "to", "over SGD", "p", "paper, CIFAR-10", "over SGD in the paper")


def table3(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Run every method with every value of its grid, and with the chosen one on every seed.

    Args:
        size: ``"toy"``: a small network on scikit-learn's digits; ``"small"``: a ResNet-20 fine-tuned on images from
            the data root; ``"paper"`` is not there yet.
        seed: The first of the paired seeds.
        watch: Told of the progress.
        folder: Where finished runs are kept.
        tasks: Only these, of which there is one; empty for it.

    Raises:
        ArgumentError: There is no such size or task.
        DataError: The data are not there.
        LabError: ``"paper"`` was asked for.
    """
    choice("size", size, (*SIZES, "paper"))
    if size == "paper":
        raise LabError(
            "size is 'paper', but ResNet-34 at 224 pixels on the six data sets of the paper is not part of this "
            "version. The nearest that is: --size small."
        )
    require(SIZES, size)
    (chosen,) = SIZES[size]
    for name in tasks:
        choice("task", name, (chosen.task,))
    asked = Study.crossed(tasks=(chosen.task,), methods=WAYS, budget=chosen.budget, seeds=chosen.seeds, first_seed=seed)
    workers = 1 if size == "toy" else num_cores()
    check(asked, workers)
    with Store(folder) as store:
        found = compare(asked, store, workers=workers, watch=Counting(watch))
    return outcome(found)


def outcome(found: Comparison) -> Outcome:
    """Make tables, figure and text of finished runs."""
    return Outcome(
        tables=tuple(_table(found, metric) for metric in _CAPTIONS),
        figures={"table3": lambda: draw(found)},
        series={"runs": _runs(found)},
        text=text(found),
    )


def _table(found: Comparison, metric: str) -> Table:
    printed = published.TABLES_3_AND_6.get(metric)
    rows: list[tuple[Cell, ...]] = []
    for way in found.spec.methods:
        cells = _ours(found, way, metric)
        if printed is not None:
            cells += (printed[way][0], printed[way][0] - printed[REFERENCE][0])
        rows.append(cells)
    columns = _COLUMNS if printed is not None else _COLUMNS[:-2]
    caption = f"{_CAPTIONS[metric]} Means over {found.spec.seeds} seeds, Student intervals, exact sign-flip tests."
    return Table(metric.replace("_", "-"), columns, tuple(rows), caption)


def _ours(found: Comparison, way: str, metric: str) -> tuple[Cell, ...]:
    (task,) = found.spec.tasks
    results, factor = runs_of(found, task, way), METRICS[metric].factor if metric in METRICS else 1.0
    value, interval = results[0].spec.value, quantity(results, metric).interval
    numbers = ("",) * 3 if interval is None else tuple(factor * x for x in (interval.mean, interval.low, interval.high))
    compared: tuple[Cell, ...] = ("", "")
    difference = paired_difference(results, runs_of(found, task, REFERENCE), metric)
    if way != REFERENCE and difference.interval is not None and difference.test is not None:
        compared = (factor * difference.interval.mean, difference.test.p)
    return (METHODS[way].label, "" if value is None else value, *numbers, *compared)


def _runs(found: Comparison) -> dict[str, np.ndarray]:
    results = found.results
    unknown = float("nan")
    return {
        "method": np.array([r.spec.method for r in results]),
        "value": np.array([unknown if r.spec.value is None else r.spec.value for r in results]),
        "seed": np.array([r.spec.seed for r in results]),
        "gradient evaluations": np.array([r.gradient_evaluations for r in results]),
        **{
            metric: np.array([unknown if (x := getattr(r, metric)) is None else x for r in results])
            for metric in ("validation_accuracy", *_CAPTIONS, "seconds")
        },
    }
