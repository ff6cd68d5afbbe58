"""``flatmin doctor``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Doctor:
    """Explain this machine: torch, its devices, packages, memory, disk, data and clusters, each with a remedy.

    Nothing is changed and nothing is downloaded; no network is used but that of the cluster which RAY_ADDRESS names.
    The exit status is 1 if there is a problem, and 0 if not; notes are no problems. If this command cannot start at
    all: python -m flatmin_lab.doctor

    Attributes:
        runs: The folder that runs are kept in.
        data_root: Folder of data that are not part of flatmin; $FLATMIN_DATA if not given.
        json: Print the findings as JSON, and nothing else, on standard output.
    """

    runs: Path = Path("runs")
    data_root: Path | None = None
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        from flatmin_lab.doctor import examine

        with Console(stderr=True).status("Looking at this machine ..."):
            found = examine(self.runs, self.data_root)
        print(json.dumps(found.as_data(), indent=2) if self.json else found)  # noqa: T201 (the result)
        if found.problems:
            raise SystemExit(1)
