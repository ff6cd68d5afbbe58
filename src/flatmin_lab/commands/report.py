"""``flatmin report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from flatmin_lab.commands.compare import DEFAULT_FOLDER


@dataclass(frozen=True)
class Report:
    """Print the table of a finished comparison or measurement and write its report again, from stored results alone.

    Attributes:
        folder: The run folder.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    folder: tyro.conf.Positional[Path] = DEFAULT_FOLDER
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        from flatmin_lab.commands.present import present, present_sheet
        from flatmin_lab.compare import assemble
        from flatmin_lab.store import Store

        messages = Console(stderr=True)
        if (self.folder / "measurement.json").is_file():
            from flatmin_lab.measure import load_sheet

            present_sheet(load_sheet(self.folder), self.folder, as_json=self.json)
            return
        with Store(self.folder, messages.print, new=False) as store:
            present(assemble(store.header().asked, store), store, as_json=self.json)
