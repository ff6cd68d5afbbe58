"""What is said of Tables 3 and 6, its numbers taken from the runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flatmin_lab.methods import METHODS
from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.nso2024.settings import differs
from flatmin_lab.recipes.study_text import difference_text, diverged_text, heading, tuning_text
from flatmin_lab.report.summary import REFERENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.recipes.studies import Found

_NSO = "nso"


def text(found: Sequence[Found]) -> str:
    """Say what the paper says, what was found, and how the two differ."""
    return "\n\n".join((_paper(), *map(_said, found), _DIFFERS + differs(found)))


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


def _said(one: Found) -> str:
    said = [f"{heading(one)}: {_against(one, METHODS[REFERENCE].label)}"]
    for metric, best, what in (("test_accuracy", max, "most accurate"), ("trace", min, "flattest")):
        means = {row.label: one.mean(row.label, metric) for row in one.rows if row.arm.method != _NSO}
        means = {label: mean for label, mean in means.items() if math.isfinite(mean)}
        if means:
            label = best(means, key=lambda name: means[name])
            compared = "." if label == METHODS[REFERENCE].label else f"; {_against(one, label)}"
            said.append(f"The {what} of the others is {label}{compared}")
    return " ".join(filter(None, (*said, tuning_text(one), diverged_text(one))))


def _against(one: Found, other: str) -> str:
    """NSO's paired differences to another method, with what the test can say."""
    accuracy, trace = (difference_text(one, METHODS[_NSO].label, other, m) for m in ("test_accuracy", "trace"))
    return f"the difference of NSO over {other} is {accuracy} in test accuracy and {trace} in trace."


_DIFFERS = (
    "**What differs from the paper**: RSAM and BSAM restore the weights after their ascent, which the authors' code "
    "does not; BSAM is that of its own paper. The largest eigenvalue is of all parameters in evaluation mode; the "
    "paper's λ₁ is no eigenvalue and is listed under the authors' name. "
)
