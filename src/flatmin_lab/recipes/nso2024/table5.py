"""Table 5: pairs of images and texts, and rationales, by the base optimizer alone, by SAM and by NSO."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.nso2024.claims import Claim, claims_table
from flatmin_lab.recipes.outcome import Outcome, Table, written
from flatmin_lab.recipes.studies import Found, Row, Scale, study
from flatmin_lab.recipes.study_tables import metric_table, runs_series
from flatmin_lab.recipes.study_text import diverged_text, heading, mean_text, setup_text, tuning_text
from flatmin_lab.spec import Arm
from flatmin_lab.tasks import task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from flatmin_lab.recipes.outcome import Watch

SIZES = {
    "toy": (Scale("digits-pairs", seeds=2, budget=8), Scale("sums-gpt", seeds=2, budget=8)),
    "small": (
        Scale("cifar10-jpeg75-pairs", seeds=3, budget=600),
        Scale("strategyqa-gpt", seeds=3, budget=400),
        Scale("ecqa-gpt", seeds=3, budget=400),
    ),
    # 30 epochs of a million pairs, and five of the questions: twice as many gradients, of which SAM and NSO need two.
    "paper": (
        Scale("cc3m-pairs", seeds=3, budget=2 * 30 * 7813),
        Scale("strategyqa-gpt2", seeds=3, budget=2 * 5 * 229),
        Scale("ecqa-gpt2", seeds=3, budget=2 * 5 * 715),
    ),
}

BASE, SAM, NSO = "base optimizer", "SAM", "NSO"
_METHODS = {BASE: "sgd", SAM: "sam", NSO: "nso"}
_PRINTED = {
    "digits-pairs": "cc3m",
    "cifar10-jpeg75-pairs": "cc3m",
    "cc3m-pairs": "cc3m",
    "strategyqa-gpt": "strategyqa",
    "strategyqa-gpt2": "strategyqa",
    "sums-gpt": "csqa",
    "ecqa-gpt": "csqa",
    "ecqa-gpt2": "csqa",
}
"""A task to the data set of the paper that it stands for."""

# Three values a method, as the paper's scripts have them.
_GRIDS = {"sam": (0.01, 0.02, 0.05), "nso": (0.008, 0.01, 0.014)}

_METRICS = {"trace": 0, "top_eigenvalue": 1, "test_accuracy": 2}
"""A field of a run to its place among the printed numbers."""


def _printed(metric: str, other: str) -> float | str:
    """What the paper has for NSO against another row, in the mean over its data sets; it has no eigenvalue."""
    numbers = [(rows["nso"], rows[_METHODS[other]]) for rows in published.TABLE_5.values()]
    if metric == "trace":
        return fmean(100 * (nso[0] / theirs[0] - 1) for nso, theirs in numbers)
    return fmean(nso[2] - theirs[2] for nso, theirs in numbers) if metric == "test_accuracy" else ""


CLAIMS = tuple(
    Claim(f"NSO over {other}", metric, NSO, other, _printed(metric, other), relative=relative, sign=sign)
    for other in (BASE, SAM)
    for metric, relative, sign in (
        ("trace", True, -1),
        ("top_eigenvalue", True, 0),
        ("test_accuracy", False, 1),
        ("test_loss", False, 0),
    )
)


def table5(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Train by AdamW alone, by SAM and by NSO around it.

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
            claims_table(
                "claims",
                CLAIMS,
                found,
                "What the paper claims, in the mean over its three data sets, and what was found.",
            ),
            *(_table(one, metric) for one in found for metric in _METRICS),
        ),
        figures={f"table5-{one.scale.task}": _drawer(one) for one in found},
        series={"runs": runs_series(found)},
        text="\n\n".join((_paper(), *map(_said, found), f"{_DIFFERS} Setup: {setup_text(found)}.")),
    )


def _rows(scale: Scale) -> Iterable[Row]:
    for label, name in _METHODS.items():
        values = _GRIDS.get(name)
        if scale.budget < 100 and values is not None:  # at toy size, one value
            values = values[:1]
        yield Row(label, Arm(task=scale.task, method=name, budget=scale.budget, values=values), BASE * (label != BASE))


def _table(one: Found, metric: str) -> Table:
    data, place = _PRINTED[one.scale.task], _METRICS[metric]
    head = "paper, " + data + ("" if metric == "trace" else ", λ₁ of its code" if place == 1 else ", %")
    what = {
        "trace": "Trace of the Hessian of the training loss.",
        "top_eigenvalue": "Largest eigenvalue of the same Hessian; the paper's number is no eigenvalue.",
        "test_accuracy": f"Test {task(one.scale.task).metric} in percent.",
    }
    return metric_table(
        one,
        metric,
        name=f"{metric.replace('_', '-')}-{one.scale.task}",
        caption=what[metric],
        printed={label: (published.TABLE_5[data][name][place],) for label, name in _METHODS.items()},
        heads=(head,),
    )


def _paper() -> str:
    parts = []
    for data, rows in published.TABLE_5.items():
        change = [100 * (rows["nso"][0] / rows[other][0] - 1) for other in ("sgd", "sam")]
        gain = [rows["nso"][2] - rows[other][2] for other in ("sgd", "sam")]
        parts.append(
            f"{data}: trace {written(change[0])} % to SGD and {written(change[1])} % to SAM, metric "
            f"{written(gain[0])} and {written(gain[1])} points"
        )
    return f"**The paper**: NSO has the smallest trace and the best metric on all three data sets ({'; '.join(parts)})."


def _said(one: Found) -> str:
    metric = task(one.scale.task).metric
    means = "; ".join(
        f"{label} {mean_text(one, label, 'trace')} and {mean_text(one, label, 'test_accuracy')}" for label in _METHODS
    )
    said = f"{heading(one)}: mean trace and test {metric}: {means}. {'; '.join(claim.said(one) for claim in CLAIMS)}."
    return " ".join(filter(None, (said, tuning_text(one), diverged_text(one))))


_DIFFERS = (
    "**What differs from the paper**: the base optimizer is AdamW in all rows with one learning rate that falls as a "
    "cosine; the paper calls its first row SGD. All rows have the same number of gradient evaluations, so that the "
    "first makes twice as many steps. Below the size `paper` images and captions are others: classes and what can be "
    "measured on an image, told in templates; R@10 counts captions that read the same once. Language models begin with "
    "fresh weights there, not with those of GPT-2, and learn human rationales, not ones drawn from a larger model; an "
    "answer counts if the model writes it after a rationale of its own. 794 of the rationales belong to development "
    "questions of CommonsenseQA: those are the test questions. Traces are of all parameters in evaluation mode."
)


def _drawer(one: Found) -> Callable[[], Figure]:
    from flatmin_lab.recipes.study_figures import rows_figure

    return lambda: rows_figure(one, ("test_accuracy", "trace", "test_loss"))
