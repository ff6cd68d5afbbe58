"""Write docs/reproducing.md from the reproductions that are stored in docs/results/reproductions.

Run it after a folder was added: ``python docs/reproducing.py``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from flatmin_lab.recipes.nso2024.shares import kept_share
from flatmin_lab.recipes.reproductions import REPRODUCTIONS
from flatmin_lab.reproduction import RECORD, ReproductionRecord
from flatmin_lab.statistics import mean_interval, sign_flip_test

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reproductions"
PAGE = HERE / "reproducing.md"

_INTRO = """\
# Reproducing the papers

Every table and figure of both papers is a recipe. A recipe names its runs, makes those that are not stored yet, and
writes tables, figures, the numbers behind them and a page, the printed numbers beside what was found:

```bash
flatmin reproduce --list                     # what there is, and what it lacks
flatmin reproduce nso.table3 --size toy      # seconds; made-up or embedded data
flatmin reproduce nso.table3 --size small    # a stand-in that two cores can do
flatmin reproduce nso.table3 --size paper    # as published, where its data are
flatmin report runs/reproduce                # all of them on one page
```

Data that are not embedded lie under a data root, `FLATMIN_DATA=FOLDER`; nothing is downloaded. What is missing is said
with where it is to be had before anything starts. An interrupted recipe goes on where it stopped. `--tasks` keeps to
some tasks of a size, and `--runs FOLDER` lets several recipes share their runs.

Numbers of the size `small` are of other networks and data than the paper's: signs and orders can be compared, numbers
cannot. Every method has the same number of gradient evaluations unless a row says otherwise, sigma and rho are chosen
on validation data, seeds are paired, and all of them are in the folders. The theory of both papers has pages of its
own: [NSO](theory-nso.md), [escaping sharp minima](theory-escape.md). Figure 2 is on [the page of the perturbation
gap](perturbation-gap.md).
"""

# Where both NSO and another method are in a study: its folder, and how the labels of the rows begin. Where several rows
# do, they differ in sigma or rho, and the one with the best mean validation accuracy is taken.
_COMPARED = (
    ("nso.table2-small-digits", "NSO, gaussian", "SGD", "SGD"),
    ("nso.table2-small-digits", "NSO, gaussian", "WP-SGD, gaussian", "WP-SGD"),
    ("nso.table4-small-digits", "NSO", "SAM", "SAM"),
    ("nso.table3-small-resnet20", "NSO", "SGD", "SGD"),
    ("nso.table3-small-resnet20", "NSO", "SAM", "SAM"),
    ("nso.table5-small", "NSO", "base optimizer", "AdamW"),
    ("nso.table5-small", "NSO", "SAM", "SAM"),
)
_SHARES = ("nso.pairing-small-digits", "nso.pairing-small-resnet20")

_COMPARISON = """\
## Where NSO wins, and where it does not

NSO less the other method with as many gradient evaluations: test accuracy in points (R@10 for pairs of images and
texts) with Student's interval and an exact sign-flip test, and the trace of the Hessian as a change in percent with
Fieller's interval. Three seeds cannot decide at 5 %, whatever they show, and no p is corrected here.
"""
_IN_WORDS = """\
In words. On networks trained from the start NSO is more accurate than SGD, by far on noisy labels, and much flatter.
At equal cost it is not told apart from WP-SGD, its one-sided half. SAM is more accurate than NSO on noisy labels, and
elsewhere no difference in accuracy is shown, so that the paper's order of the two is not found here. Where a trained
ResNet-20 is fine-tuned, NSO is neither more accurate nor flatter than SGD, which takes twice as many steps for as
many gradients, ends at a smaller training loss, and has a smaller trace there; after as many steps (`nso.pairing`)
NSO is more accurate. Small language models and pairs of images and texts become much flatter with NSO, but are
trained less far with as many gradients, and are no more accurate. A smaller trace does not by itself mean a better
network.
"""
_PAIRED = """\
**Two-point noise at the price of SGD**: the two points on the two halves of a batch, and the share of NSO's effect
that this keeps, in percent. *At least 90 %* is shown or refuted by the interval. On perceptrons it is kept; on the
ResNet-20, whose batch normalisation sees half a batch at a time, the gain in accuracy is not.
"""


def page() -> str:
    """The whole page."""
    records = {folder.name: _record(folder) for folder in sorted(RESULTS.iterdir()) if (folder / RECORD).is_file()}
    sections = (_section(name, record) for name, record in records.items())
    return "\n".join([_INTRO, *_listed(records), "", *_summary(), *sections])


def _summary() -> Iterator[str]:
    yield _COMPARISON
    yield "| task | NSO less | seeds | test accuracy, points | p | trace, % |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for folder, mine, others, name in _COMPARED:
        yield from _compared(folder, mine, others, name)
    yield f"\n{_IN_WORDS}\n{_PAIRED}"
    yield "| task | of | kept, % | at least 90 % |\n| --- | --- | --- | --- |"
    for folder in _SHARES:
        for row in _rows(folder, "shares"):
            ends = [float(row[end]) for end in ("95 % from", "to")]
            bracket = _bracket(*ends) if all(map(math.isfinite, ends)) else "[no bounds]"
            yield f"| {row['task']} | {row['of']} | {float(row['kept']):.0f} {bracket} | {row['at least 90 %']} |"
    yield ""


def _compared(folder: str, mine: str, others: str, name: str) -> Iterator[str]:
    """One line a task of a study, from its stored runs."""
    runs = _rows(folder, "runs-series")
    for task in dict.fromkeys(run["task"] for run in runs):
        one, other = (_best([run for run in runs if run["task"] == task], label) for label in (mine, others))
        seeds = sorted(one.keys() & other.keys())
        points = [100 * (one[seed]["test_accuracy"] - other[seed]["test_accuracy"]) for seed in seeds]
        accuracy = mean_interval(points)
        trace = kept_share([one[seed]["trace"] for seed in seeds], [other[seed]["trace"] for seed in seeds])
        change, low, high = (100 * (x - 1) for x in (trace.share, trace.low, trace.high))
        yield (
            f"| {task} | {name} | {len(seeds)} | {accuracy.mean:+.1f} {_bracket(accuracy.low, accuracy.high, 1)} | "
            f"{sign_flip_test(points).p:.2g} | {change:+.0f} {_bracket(low, high)} |"
        )


def _best(runs: list[dict[str, str]], label: str) -> dict[str, dict[str, float]]:
    """Return, by seed, the metrics of the row with this label, or of the best one with it and a value."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        if run["row"] == label or run["row"].startswith((f"{label}, σ", f"{label}, ρ")):
            metrics = {metric: float(run[metric]) for metric in ("test_accuracy", "validation_accuracy", "trace")}
            rows.setdefault(run["row"], {})[run["seed"]] = metrics
    return max(rows.values(), key=lambda by_seed: fmean(m["validation_accuracy"] for m in by_seed.values()))


def _bracket(low: float, high: float, digits: int = 0) -> str:
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def _rows(folder: str, table: str) -> list[dict[str, str]]:
    with (RESULTS / folder / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _listed(records: dict[str, ReproductionRecord]) -> list[str]:
    lines = ["| recipe | what | where | results here |", "| --- | --- | --- | --- |"]
    for name, entry in REPRODUCTIONS.items():
        folders = [folder for folder, record in records.items() if record.name == name]
        stored = [f"[{folder.removeprefix(f'{name}-')}](#{_anchor(folder)})" for folder in folders]
        lines.append(f"| `{name}` | {entry.summary} | {entry.paper} | {', '.join(stored)} |")
    return lines


def _section(folder: str, record: ReproductionRecord) -> str:
    place = f"results/reproductions/{folder}"
    environment = record.environment
    figures = [file for what, file in record.files.items() if what.endswith("(figure)")]
    shown = "\n\n".join(f"![{file.removesuffix('.png')}]({place}/{file})" for file in figures)
    made = (
        f"flatmin {environment['flatmin']}, torch {environment['torch']}, {environment['cores']} cores of "
        f"{environment['processor']}. [Tables]({place}/README.md), [numbers]({place})."
    )
    return f"## {folder}\n\n{record.text}\n\n{shown}\n\n{made}\n"


def _anchor(folder: str) -> str:
    return "".join(c for c in folder.lower() if c.isalnum() or c in "-_")


def _record(folder: Path) -> ReproductionRecord:
    return ReproductionRecord.model_validate_json((folder / RECORD).read_bytes())


if __name__ == "__main__":
    PAGE.write_text(page())
