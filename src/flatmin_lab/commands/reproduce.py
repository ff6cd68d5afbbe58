"""``flatmin reproduce``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flatmin_lab.recipes.reproductions import REPRODUCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.recipes.outcome import Table
    from flatmin_lab.reproduction import ReproductionRecord

_NAME_HELP = f"What to make again: {'; '.join(f'{name} ({r.summary})' for name, r in REPRODUCTIONS.items())}."


@dataclass(frozen=True)
class Reproduce:
    """Make a table or a figure of one of the two papers again, and say how it compares with what is printed.

    What is finished is printed again from its folder; nothing is computed twice.

    Attributes:
        name: What to make again.
        size: toy takes seconds, small minutes on two cores, and paper is as published.
        seed: Seed of everything random; the papers' is 0.
        out: The folder to write into; one under runs/reproduce if not given.
        tasks: Of what is made of runs, only these of the size's tasks.
        runs: Where the runs it is made of are kept, which several may share; a folder within its own if not given.
        list: Print what there is, where in the papers it stands, and how far each size of it is here; do nothing else.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=_NAME_HELP)] = ""
    size: Literal["toy", "small", "paper"] = "small"
    seed: int = 0
    out: Path | None = None
    tasks: tuple[str, ...] = ()
    runs: Path | None = None
    list: bool = False
    json: bool = False

    def run(self) -> None:
        """Do it."""
        if self.list or not self.name:
            _present_all(as_json=self.json)
            return
        from rich.console import Console

        from flatmin_lab.parts import PartBars
        from flatmin_lab.reproduction import folder_for, reproduce

        messages = Console(stderr=True)
        folder = self.out or folder_for(self.name, self.size, self.seed, self.tasks)
        with PartBars(messages) as watch:
            record = reproduce(
                self.name,
                self.size,
                folder,
                seed=self.seed,
                tasks=self.tasks,
                runs=self.runs,
                watch=watch,
                note=messages.print,
            )
        _present(record, folder, as_json=self.json)


def _present_all(*, as_json: bool) -> None:
    from flatmin_lab.recipes.registry import SIZES
    from flatmin_lab.reproduction import folder_for, state

    states = {name: {size: state(name, size, folder_for(name, size)) for size in SIZES} for name in REPRODUCTIONS}
    if as_json:
        listed = {
            name: {"summary": r.summary, "paper": r.paper, "state": states[name]} for name, r in REPRODUCTIONS.items()
        }
        print(json.dumps(listed, indent=2))  # noqa: T201  (the result)
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table, lacking = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)), {}
    table.add_column("name", no_wrap=True, min_width=max(map(len, REPRODUCTIONS)))  # to be copied
    table.add_column("what, and where it is printed")
    for size in SIZES:
        table.add_column(size)
    for name, entry in REPRODUCTIONS.items():
        row = []
        for found in states[name].values():
            known = found in ("begun", "not run") or found.startswith("finished")
            row.append(found if known else f"lacks [{lacking.setdefault(found, len(lacking) + 1)}]")
        table.add_row(name, f"{escape(entry.summary)}\n[dim]{escape(entry.paper)}[/dim]", *map(escape, row))
    console = Console()
    console.print(table)
    for what, number in lacking.items():
        console.print(f"[{number}] {what}", markup=False, highlight=False, soft_wrap=True)


def _present(record: ReproductionRecord, folder: Path, *, as_json: bool) -> None:
    if as_json:
        found = record.model_dump(mode="json")
        found["files"] = {what: str(folder / file) for what, file in record.files.items()}
        print(json.dumps(found, indent=2, allow_nan=False))  # noqa: T201  (the result)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    for found in record.tables:
        _print_table(found)
    console.print(Markdown(record.text))
    console.print(f"Page: {folder / record.files['page']}", highlight=False, soft_wrap=True)


def _print_table(found: Table) -> None:
    """Print a table with its cells whole: beyond the width of the terminal where that is too narrow for its words."""
    from rich import box
    from rich import table as rich_table
    from rich.console import Console
    from rich.markup import escape

    from flatmin_lab.recipes.outcome import written

    rows, width = [[written(cell) for cell in row] for row in found.rows], Console().width

    def widths(*heads: Sequence[str]) -> list[int]:
        return [max(map(len, column)) for column in zip(*heads, *rows, strict=True)]

    chosen = widths(found.columns)
    if sum(chosen) + len(chosen) >= width:  # with a blank after each
        chosen = widths([max(head.split(), key=len, default="") for head in found.columns])
    table = rich_table.Table(title=escape(found.caption), box=box.SIMPLE_HEAD, title_justify="left", padding=0)
    for head, size in zip(found.columns, chosen, strict=True):
        table.add_column(escape(head), width=size)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=max(width, sum(chosen) + len(chosen) + 1)).print(table)
