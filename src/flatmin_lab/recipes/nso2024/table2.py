"""Table 2: four laws of noise, at one point of the weights and at two."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from flatmin_lab.methods import LAWS, METHODS
from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.nso2024.claims import Claim, claims_list, claims_table, claims_text
from flatmin_lab.recipes.nso2024.settings import arm, differs, sizes
from flatmin_lab.recipes.outcome import Outcome, Table
from flatmin_lab.recipes.studies import Found, Row, Scale, study
from flatmin_lab.recipes.study_tables import metric_table, runs_series
from flatmin_lab.recipes.study_text import diverged_text, heading, mean_text, tuning_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from flatmin_lab.recipes.outcome import Watch

SIZES = sizes(("aircraft-resnet34", "indoor-resnet34", "retina-resnet34"), seeds=5)

WAYS = ("sgd", "wpsgd", *(f"wpsgd-{law}" for law in LAWS), "nso", *(f"nso-{law}" for law in LAWS))
"""The rows: no noise, then one-sided draws, then pairs; the Gaussian law first."""

LABELS = {way: METHODS[way].label for way in WAYS} | {"wpsgd": "WP-SGD, gaussian", "nso": "NSO, gaussian"}

_CAPTIONS = {
    "train_accuracy": "Accuracy on the training set in percent, on the labels trained with.",
    "test_accuracy": "Test accuracy in percent.",
    "trace": "Trace of the Hessian of the training loss; not in the paper's table.",
}


def table2(size: str, seed: int, watch: Watch, folder: Path, tasks: Sequence[str] = ()) -> Outcome:
    """Train by SGD, by WP-SGD and by NSO with noise of each law, sigma chosen alike for all.

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
            claims_table("claims", CLAIMS, found, "Differences, and their means over the paper's three data sets."),
            *(_table(one, metric) for one in found for metric in _CAPTIONS),
        ),
        figures={f"table2-{one.scale.task}": _drawer(one) for one in found},
        series={"runs": runs_series(found)},
        text="\n\n".join((_paper(), *map(_said, found), _DIFFERS + differs(found))),
    )


def _rows(scale: Scale) -> Iterable[Row]:
    for way in WAYS:
        against = "" if way == "sgd" else LABELS[way.replace("nso", "wpsgd")] if "nso" in way else LABELS["sgd"]
        yield Row(LABELS[way], arm(scale, way), against)


def _table(one: Found, metric: str) -> Table:
    printed = published.TABLE_2.get(metric, {})
    return metric_table(
        one,
        metric,
        name=f"{metric.replace('_', '-')}-{one.scale.task}",
        caption=_CAPTIONS[metric],
        printed={LABELS[way]: numbers for way, numbers in printed.items()},
        heads=tuple(f"paper, {data}" for data in published.TABLE_2_DATA) if printed else (),
    )


def _claims() -> Iterable[Claim]:
    yield Claim("NSO over SGD, gaussian", "test_accuracy", LABELS["nso"], LABELS["sgd"], _printed("nso", "sgd"), sign=1)
    yield Claim("NSO over SGD, gaussian", "trace", LABELS["nso"], LABELS["sgd"], relative=True)
    for law in ("gaussian", *LAWS):
        end = "" if law == "gaussian" else f"-{law}"
        two, one = f"nso{end}", f"wpsgd{end}"
        text = f"NSO over WP-SGD, {law}"
        yield Claim(text, "test_accuracy", LABELS[two], LABELS[one], _printed(two, one), sign=1)
        yield Claim(text, "trace", LABELS[two], LABELS[one], relative=True)
    for law in LAWS:
        two, text = f"nso-{law}", f"NSO, {law} over gaussian"
        yield Claim(text, "test_accuracy", LABELS[two], LABELS["nso"], _printed(two, "nso"))


def _printed(way: str, other: str) -> float | str:
    """Mean over the paper's data sets of a difference; what its binomial rows have is no difference of laws."""
    numbers = published.TABLE_2["test_accuracy"]
    if way not in numbers or other not in numbers or "binomial" in way:
        return ""
    return fmean(a - b for a, b in zip(numbers[way], numbers[other], strict=True))


CLAIMS = tuple(_claims())


def _paper() -> str:
    numbers = published.TABLE_2["test_accuracy"]
    best = [max(numbers, key=lambda way: numbers[way][i]) for i in range(len(published.TABLE_2_DATA))]
    listed = ", ".join(
        f"{data} {numbers['wpsgd'][i]:.1f} and {numbers['nso'][i]:.1f} %"
        for i, data in enumerate(published.TABLE_2_DATA)
    )
    where = "everywhere" if set(best) == {"nso"} else f"not everywhere ({', '.join(best)})"
    return (
        f"**The paper**: with Gaussian noise the test accuracies of WP-SGD and NSO are {listed}; NSO with Gaussian "
        f"noise is the best row {where}, and Laplace and uniform noise come near. Binomial noise has accuracies of "
        f"{min(numbers['wpsgd-binomial']):.1f} to {max(numbers['nso-binomial']):.1f} %."
    )


def _said(one: Found) -> str:
    accuracies = {way: one.mean(LABELS[way], "test_accuracy") for way in WAYS}
    traces = {way: one.mean(LABELS[way], "trace") for way in WAYS}
    best, flattest = max(WAYS, key=lambda way: accuracies[way]), min(WAYS, key=lambda way: traces[way])
    said = (
        f"{heading(one)}: test accuracy of SGD {mean_text(one, LABELS['sgd'], 'test_accuracy')}; the best row is "
        f"{LABELS[best]} ({mean_text(one, LABELS[best], 'test_accuracy')}), the one of smallest trace "
        f"{LABELS[flattest]} ({mean_text(one, LABELS[flattest], 'trace')}; SGD "
        f"{mean_text(one, LABELS['sgd'], 'trace')}):"
    )
    rest = (
        "Of all differences in test accuracy: "
        f"{claims_text((claim for claim in CLAIMS if claim.metric == 'test_accuracy'), one)} {tuning_text(one)}"
    )
    return "\n\n".join(filter(None, (said, claims_list(CLAIMS[:4], one), rest, diverged_text(one))))


_DIFFERS = (
    "**What differs from the paper**: binomial noise. The paper's code adds draws of Bin(4, ½), whose mean is 2 and "
    "not 0, so that all weights are shifted by 2σ; its binomial rows show that shift. Here the law is centred, "
    "Bin(4, ½) − 2, of variance 1 like the others. Rademacher noise, ±σ, is ours. "
)


def _drawer(one: Found) -> Callable[[], Figure]:
    from flatmin_lab.recipes.study_figures import rows_figure

    return lambda: rows_figure(one, ("train_accuracy", "test_accuracy", "trace"))
