"""``flatmin report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from flatmin_lab.commands.compare import DEFAULT_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_OUT = Path("runs/report")


@dataclass(frozen=True)
class Report:
    """Print the tables of finished results and write their report again, from stored results alone.

    Attributes:
        folders: Of a comparison, a measurement, a landscape, reproductions, or folders that hold several comparisons
            and reproductions: those of more than one are put on one page.
        out: Where page and tables are written; the folder itself if one is given, else runs/report.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = (DEFAULT_FOLDER,)
    out: Path | None = None
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        note = Console(stderr=True).print
        if len(self.folders) == 1 and self.out is None and _is_alone(self.folders[0]):
            _report_one(self.folders[0], note, as_json=self.json)
            return
        from flatmin_lab.commands.present import present_collection
        from flatmin_lab.errors import StoreError
        from flatmin_lab.report.stored import read

        stored = read(self.folders, note)
        if stored.reproductions or stored.comparisons:
            out = self.out or (self.folders[0] if len(self.folders) == 1 else DEFAULT_OUT)
            present_collection(stored, out, as_json=self.json)
        if stored.skipped:
            raise StoreError(f"{len(stored.skipped)} left out of the report. {' '.join(stored.skipped)}")


def _is_alone(folder: Path) -> bool:
    """Whether a folder has a page of its own, or holds nothing and is complained of as if it had."""
    from flatmin_lab.landscapes.record import RECORD
    from flatmin_lab.report.stored import COMPARISON, MEASUREMENT, places

    return any((folder / mark).is_file() for mark in (COMPARISON, MEASUREMENT, RECORD)) or not list(places(folder))


def _report_one(folder: Path, note: Callable[[str], object], *, as_json: bool) -> None:
    from flatmin_lab.commands.present import present, present_landscape, present_sheet
    from flatmin_lab.compare import assemble
    from flatmin_lab.landscapes.record import RECORD as LANDSCAPE
    from flatmin_lab.landscapes.record import load_landscape
    from flatmin_lab.measure import RECORD, load_sheet
    from flatmin_lab.store import Store

    if (folder / RECORD).is_file():
        present_sheet(load_sheet(folder), folder, as_json=as_json)
        return
    if (folder / LANDSCAPE).is_file():
        present_landscape(load_landscape(folder), folder, as_json=as_json)
        return
    with Store(folder, note, new=False) as store:
        present(assemble(store.header().asked, store), store, as_json=as_json)
