"""Tables and series of Figure 3, from what it came to alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from flatmin_lab.recipes.escape2023.fig3_claims import claims
from flatmin_lab.recipes.escape2023.fig3_drawings import draw_fig3
from flatmin_lab.recipes.escape2023.fig3_results import PAPER_START, end, shown
from flatmin_lab.recipes.escape2023.fig3_text import text
from flatmin_lab.recipes.outcome import Cell, Outcome, Table
from flatmin_lab.statistics import mean_interval

if TYPE_CHECKING:
    from flatmin_lab.recipes.escape2023.fig3_results import Chosen, Results
    from flatmin_lab.recipes.escape2023.fig3_walks import Look, Walk
    from flatmin_lab.statistics import Interval

_OF_A_RADIUS = ("validation_accuracy", "train_accuracy", "test_accuracy", "trace")


def outcome(found: Results) -> Outcome:
    """Make tables, figure and text."""
    return Outcome(
        tables=(_claim_table(found), _end_table(found), _start_table(found), _radius_table(found)),
        figures={"fig3": lambda: draw_fig3(found)},
        series={"walks": _series(found)},
        text=text(found, claims(found)),
    )


def _claim_table(found: Results) -> Table:
    rows = tuple((c.says, c.measured, c.found.mean, c.found.low, c.found.high, c.verdict) for c in claims(found))
    caption = (
        f"What the paper says, and paired differences at the end of the walks: means over {found.scale.seeds} seeds, "
        "Student intervals of 95 %. Undecided where the interval holds zero."
    )
    return Table("claims", ("the paper says", "difference", "mean", "95 % from", "to", "here"), rows, caption)


def _end_table(found: Results) -> Table:
    rows = tuple(_end_row(found, one) for one in found.chosen)
    columns = (
        *("method", "batch size", "rho", "train accuracy, %", "least on the way, %"),
        *("test accuracy, %", "95 % from", "to", "over the start, points", "95 % from", "to"),
        *("over SGD, points", "95 % from", "to", "trace", "95 % from", "to"),
        *("steps", "gradients", "examples in gradients"),
    )
    caption = f"The ends of the walks with the chosen radii; means over {found.scale.seeds} seeds, Student intervals."
    return Table("ends", columns, rows, caption)


def _end_row(found: Results, one: Chosen) -> tuple[Cell, ...]:
    sgd = found.of("SGD", one.way.batch_size)
    over_sgd: tuple[Cell, ...] = ("",) * 3
    if sgd is not None and sgd is not one:
        over_sgd = _numbers(found.over(one, sgd, "test_accuracy"))
    last = one.walks[0].looks[-1]
    return (
        *(one.way.method, one.way.batch_size, one.rho or ""),
        *(float(np.mean(one.ends("train_accuracy"))), one.least_train_accuracy()),
        *_numbers(mean_interval(one.ends("test_accuracy"))),
        *_numbers(found.over(one, found.start.look, "test_accuracy")),
        *over_sgd,
        *_numbers(mean_interval(one.ends("trace"))),
        *(last.step, last.gradients, last.gradients * one.way.batch_size),
    )


def _numbers(interval: Interval) -> tuple[float, float, float]:
    return interval.mean, interval.low, interval.high


def _start_table(found: Results) -> Table:
    start = found.start
    rows = tuple(
        (
            name,
            *(shown(look, f"{split}_accuracy") for split in ("train", "validation", "test")),
            *(shown(look, metric) for metric in ("train_loss", "trace", "trace_stderr")),
        )
        for name, look in (("random labels first", start.look), ("fresh weights", start.fresh))
    )
    rows += (("the paper's, random labels first", 100.0, "", PAPER_START, "", "", ""),)
    columns = ("start", "train accuracy, %", "validation, %", "test, %", "train loss", "trace", "its standard error")
    caption = (
        f"The start of all walks ({start.random_epochs} epochs on random labels, of which {100 * start.random_share:g} "
        f"% are right at their end, then {start.true_epochs} on the true ones; {start.gradients:,} gradients), beside "
        "a network that is fitted from fresh weights."
    )
    return Table("start", columns, rows, caption)


def _radius_table(found: Results) -> Table:
    rows = tuple(
        (
            *(one.way.method, one.way.batch_size, rho),
            *(float(np.mean([end(walk, metric) for walk in walks])) for metric in _OF_A_RADIUS),
            "chosen" if rho == one.rho else "",
        )
        for one in found.chosen
        for rho, walks in one.tried.items()
    )
    columns = ("method", "batch size", "rho", "validation accuracy, %", "train, %", "test, %", "trace", "")
    seeds = "one seed" if found.scale.tuning_seeds == 1 else f"{found.scale.tuning_seeds} seeds"
    return Table("radii", columns, rows, f"Every radius at the end of its walks, {seeds}; validation data choose.")


def _series(found: Results) -> dict[str, np.ndarray]:
    each = list(_looks(found))
    fields = ("train_loss", "train_accuracy", "validation_accuracy", "test_accuracy", "trace", "trace_stderr")
    return {
        "method": np.array([one.way.method for one, _, _ in each]),
        "batch size": np.array([one.way.batch_size for one, _, _ in each]),
        "rho": np.array([walk.asked.rho for _, walk, _ in each]),
        "seed": np.array([walk.asked.seed for _, walk, _ in each]),
        "step": np.array([look.step for _, _, look in each]),
        "gradients": np.array([look.gradients for _, _, look in each]),
        **{name.replace("_", " "): np.array([shown(look, name) for _, _, look in each]) for name in fields},
    }


def _looks(found: Results) -> Iterator[tuple[Chosen, Walk, Look]]:
    for one in found.chosen:
        for walk in one.walks:
            for look in walk.looks:
                yield one, walk, look
