"""Write docs/reproducing.md from the reproductions that are stored in docs/results/reproductions.

Run it after a folder was added: ``python docs/reproducing.py``.
"""

from __future__ import annotations

from pathlib import Path

from flatmin_lab.recipes.reproductions import REPRODUCTIONS
from flatmin_lab.reproduction import RECORD, ReproductionRecord

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "reproductions"
PAGE = HERE / "reproducing.md"

_INTRO = """\
# Reproducing the papers

Every table and figure of both papers is a recipe. A recipe names its runs, makes those that are not stored yet, and
writes tables, figures, the numbers behind them and a page, the printed numbers beside what was found:

```bash
flatmin reproduce --list                          # what there is, how far it is here, and what it lacks
flatmin reproduce nso.table3 --size toy           # seconds; made-up or embedded data
flatmin reproduce nso.table3 --size small         # a stand-in that two cores can do
flatmin reproduce nso.table3 --size paper         # the paper's networks and data, where they and a GPU are
flatmin report runs/reproduce                     # all of them on one page, from what is stored
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


def page() -> str:
    """The whole page."""
    records = {folder.name: _record(folder) for folder in sorted(RESULTS.iterdir()) if (folder / RECORD).is_file()}
    return "\n".join([_INTRO, *_listed(records), "", *(_section(name, record) for name, record in records.items())])


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
