"""What is said of studies, its numbers taken from their runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.methods import method
from flatmin_lab.plan import is_tuned, values
from flatmin_lab.recipes.outcome import written
from flatmin_lab.recipes.study_tables import scaled
from flatmin_lab.report.summary import ALPHA
from flatmin_lab.report.text import SYMBOLS
from flatmin_lab.tasks import task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flatmin_lab.recipes.studies import Found


def heading(found: Found) -> str:
    """The task, and how much was run on it."""
    scale = found.scale
    return f"**{scale.task}** ({task(scale.task).summary}; {scale.budget} gradient evaluations, {scale.seeds} seeds)"


def mean_text(found: Found, label: str, metric: str) -> str:
    """Mean of a metric over the seeds of a row, with its unit."""
    percent = " %" if metric.endswith("accuracy") else ""
    return f"{written(scaled(metric, found.mean(label, metric)))}{percent}"


def difference_text(found: Found, label: str, against: str, metric: str) -> str:
    """Paired difference of two rows: its mean, its interval, and what the test can say."""
    difference = found.difference(label, against, metric)
    if difference.interval is None or difference.test is None:
        return f"not defined, as {difference.why_undefined}"
    interval, test = difference.interval, difference.test
    mean, low, high = (written(scaled(metric, x)) for x in (interval.mean, interval.low, interval.high))
    unit = " points" if metric.endswith("accuracy") else ""
    p = f"p = {written(test.p)}"
    if not test.can_reach(ALPHA):
        p += f", of which these seeds could reach {written(test.reachable)} at best"
    return f"{mean}{unit} [{low}, {high}] ({p})"


def tuning_text(found: Found) -> str:
    """What was chosen for each row on validation data, and what lies at an end of its grid."""
    tuned = [row for row in found.rows if is_tuned(row.arm)]
    if not tuned:
        return ""
    chosen: dict[str, list[str]] = {}
    for row in tuned:
        symbol = SYMBOLS[method(row.arm.method).hyperparameter or ""]
        chosen.setdefault(f"{symbol} = {found.value(row):g}", []).append(row.label)
    edges = [row.label for row in tuned if found.value(row) in (values(row.arm)[0], values(row.arm)[-1])]
    listed = ". ".join(f"{value} for {'; '.join(labels)}" for value, labels in chosen.items())
    at_the_edge = f"At an end of its grid: {'; '.join(edges)}." if edges else "None lies at an end of its grid."
    return f"Chosen by validation accuracy over two seeds: {listed}. {at_the_edge}"


def diverged_text(found: Found) -> str:
    """Which runs diverged, if any."""
    lost = {row.label: sum(run.status == "diverged" for run in found.runs(row)) for row in found.rows}
    listed = ", ".join(f"{label} ({count} of {found.scale.seeds} seeds)" for label, count in lost.items() if count)
    return f"Diverged, so that their means are NaN: {listed}." if listed else ""


def setup_text(found: Iterable[Found]) -> str:
    """The base optimizer of each task, equal for all methods, and what its curvature is measured on."""
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in _grouped(found).items())


def _grouped(found: Iterable[Found]) -> dict[str, list[str]]:
    """A setup to the tasks that have it."""
    setups: dict[str, list[str]] = {}
    for one in found:
        on = task(one.scale.task)
        setting, examples = on.setting, on.measuring.examples
        momentum = "" if setting.optimizer == "adamw" else f"momentum {setting.momentum:g}, "
        name = {"sgd": "SGD", "adamw": "AdamW"}[setting.optimizer]
        what = (
            f"{name}, learning rate {setting.learning_rate:g}, {momentum}"
            f"weight decay {setting.weight_decay:g}, batch size {setting.batch_size}, cosine, curvature on "
            + (f"the first {examples} training examples" if examples else "all training examples")
        )
        setups.setdefault(what, []).append(on.name)
    return setups
