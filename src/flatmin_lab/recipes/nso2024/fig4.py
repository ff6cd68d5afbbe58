"""Figure 4: the test loss of NSO and of WP-SGD over learning rates and lengths of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.recipes.nso2024.claims import Claim, claims_table
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

SIZES = sizes(("aircraft-resnet34", "indoor-resnet34"), seeds=5, digits_seeds=9)  # what Holm needs for nine cells

RATES, LENGTHS = (0.5, 1.0, 2.0), (0.5, 1.0, 2.0)
"""What the task's learning rate and the budget are multiplied by; the paper's grids are not in the text."""

_CAPTIONS = {"test_loss": "Test loss.", "test_accuracy": "Test accuracy in percent."}


def fig4(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Train by NSO and by WP-SGD, sigma fixed, with every learning rate and every length.

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
            *(claims_table(f"cells-{one.scale.task}", claims(one.scale), [one], "NSO over WP-SGD.") for one in found),
            *(
                metric_table(one, metric, name=f"{metric.replace('_', '-')}-{one.scale.task}", caption=caption)
                for one in found
                for metric, caption in _CAPTIONS.items()
            ),
        ),
        figures={f"fig4-{one.scale.task}": _drawer(one) for one in found},
        series={"runs": runs_series(found)},
        text="\n\n".join((_PAPER, *map(_said, found), _differs(found))),
    )


def cells(scale: Scale) -> list[tuple[float, int]]:
    """Learning rate and budget of every cell."""
    rate = task(scale.task).setting.learning_rate
    kept = slice(GROUNDS[scale.task].tried)
    return [(r * rate, round(n * scale.budget)) for n in LENGTHS[kept] for r in RATES[kept]]


def label(method: str, rate: float, budget: int) -> str:
    """The label of a row."""
    return f"{method}, η = {rate:g}, {budget} gradients"


def _rows(scale: Scale) -> Iterable[Row]:
    sigma = GROUNDS[scale.task].sigma
    for rate, budget in cells(scale):
        longer = budget / scale.budget
        base, at = label("WP-SGD", rate, budget), Changes(learning_rate=rate)
        yield Row(base, arm(scale, "wpsgd", longer, value=sigma, changes=at))
        yield Row(label("NSO", rate, budget), arm(scale, "nso", longer, value=sigma, changes=at), against=base)


def claims(scale: Scale) -> list[Claim]:
    """NSO over WP-SGD in every cell."""
    return [
        Claim(
            f"η = {rate:g}, {budget} gradients",
            "test_loss",
            label("NSO", rate, budget),
            label("WP-SGD", rate, budget),
            "lower",
            relative=True,
            sign=-1,
        )
        for rate, budget in cells(scale)
    ]


def _said(one: Found) -> str:
    listed = claims(one.scale)
    verdicts = [claim.verdict(one) for claim in listed]
    counted = ", ".join(f"{verdict} in {verdicts.count(verdict)}" for verdict in dict.fromkeys(verdicts))
    changes = [numbers[0] for claim in listed if (numbers := claim.interval(one)) is not None]
    between = f"{written(min(changes))} to {written(max(changes))} %" if changes else "not defined"
    best = {
        method: min(cells(one.scale), key=lambda cell: one.mean(label(method, *cell), "test_loss"))
        for method in ("NSO", "WP-SGD")
    }
    lowest = "; ".join(
        f"{method} {written(one.mean(label(method, *cell), 'test_loss'))} (η = {cell[0]:g}, {cell[1]} gradients)"
        for method, cell in best.items()
    )
    said = (
        f"{heading(one)}: σ = {GROUNDS[one.scale.task].sigma:g}. A lower test loss of NSO, the paper's order, in "
        f"{len(listed)} cells: {counted}; the change by cell is {between}. The lowest mean test losses: {lowest}."
    )
    return " ".join(filter(None, (said, diverged_text(one))))


_PAPER = "**The paper**: NSO has a lower test loss than WP-SGD over learning rates and numbers of epochs (5 seeds)."


def _differs(found: Sequence[Found]) -> str:
    return (
        "**What differs from the paper**: its grids are not in the text; here the learning rate of the task and the "
        f"budget are multiplied by {', '.join(f'{x:g}' for x in RATES)}. σ is fixed at one value for each task. WP-SGD "
        "has two independent draws a step, as many gradients as NSO. " + differs(found)
    )


def _drawer(one: Found) -> Callable[[], Figure]:
    from flatmin_lab.recipes.study_figures import Curve, Panel, curves_figure

    def curve(method: str, budget: int) -> Curve:
        on = [(rate, one.row(label(method, rate, budget))) for rate, n in cells(one.scale) if n == budget]
        return Curve(method, tuple(on))

    budgets = dict.fromkeys(budget for _, budget in cells(one.scale))
    panels = [
        Panel(f"{n} gradients", "test_loss", "learning rate", (curve("WP-SGD", n), curve("NSO", n))) for n in budgets
    ]
    return lambda: curves_figure(one, [panels])
