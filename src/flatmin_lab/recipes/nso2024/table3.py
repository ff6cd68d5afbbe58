"""Tables 3 and 6: accuracy, trace and largest eigenvalue of SGD, label smoothing, the SAM family and NSO."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.methods import METHODS
from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.nso2024.settings import GROUNDS, arm, paper_scales
from flatmin_lab.recipes.nso2024.table3_text import text
from flatmin_lab.recipes.outcome import Cell, Outcome, Table
from flatmin_lab.recipes.studies import Found, Row, Scale, study
from flatmin_lab.recipes.study_tables import metric_table, runs_series
from flatmin_lab.report.summary import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from flatmin_lab.recipes.outcome import Watch

WAYS = ("sgd", "ls", "sam", "usam", "asam", "rsam", "bsam", "nso")
"""The rows, as they are printed."""

SIZES = {
    "toy": (Scale("digits-tiny", seeds=2, budget=24),),
    "small": (Scale("cifar10-jpeg75-resnet20", seeds=6, budget=400),),
    "paper": paper_scales(
        (
            "cifar10-resnet34",
            "cifar100-resnet34",
            "aircraft-resnet34",
            "caltech256-resnet34",
            "indoor-resnet34",
            "retina-resnet34",
        )
    ),
}

_CAPTIONS = {
    "test_accuracy": "Test accuracy in percent.",
    "trace": "Trace of the Hessian of the training loss, of all parameters; the paper's leaves some out.",
    "top_eigenvalue": "The largest eigenvalue of the same Hessian, which the paper does not have.",
    "authors_lambda": "What the paper calls λ₁, computed as its authors' code does; it is no eigenvalue.",
}


def table3(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Run every method with every value of its grid, and with the chosen one on every seed.

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
        tables=tuple(_table(one, metric) for one in found for metric in _CAPTIONS),
        figures={f"table3-{one.scale.task}": _drawer(one) for one in found},
        series={"runs": runs_series(found)},
        text=text(found),
    )


def _rows(scale: Scale) -> Iterable[Row]:
    for way in WAYS:
        yield Row(METHODS[way].label, arm(scale, way), against="" if way == REFERENCE else METHODS[REFERENCE].label)


def _table(one: Found, metric: str) -> Table:
    data = GROUNDS[one.scale.task].data or published.DATA_SETS[0]
    column, numbers = published.DATA_SETS.index(data), published.TABLES_3_AND_6.get(metric, {})
    printed: dict[str, tuple[Cell, ...]] = {
        METHODS[way].label: (row[column], "" if way == REFERENCE else row[column] - numbers[REFERENCE][column])
        for way, row in numbers.items()
    }
    return metric_table(
        one,
        metric,
        name=f"{metric.replace('_', '-')}-{one.scale.task}",
        caption=_CAPTIONS[metric],
        printed=printed,
        heads=(f"paper, {data}", "over SGD in the paper") if printed else (),
    )


def _drawer(one: Found) -> Callable[[], Figure]:
    from flatmin_lab.recipes.study_figures import rows_figure

    return lambda: rows_figure(one, ("test_accuracy", "trace"))
