"""The commands of ``flatmin``: each is a class whose fields are its options.

A new command is added to `Command` and nowhere else. What a command needs is imported where it runs, so that help
appears at once.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from flatmin_lab.methods import METHODS
from flatmin_lab.tasks import TASKS

if TYPE_CHECKING:
    from flatmin_lab.spec import Comparison
    from flatmin_lab.store import Store

DEFAULT_FOLDER = Path("runs/compare")

_METHODS_HELP = f"What to compare: {', '.join(f'{m.name} ({m.label})' for m in METHODS.values())}."
_TASKS_HELP = f"On what: {'; '.join(f'{t.name} ({t.summary})' for t in TASKS.values())}."


@dataclass(frozen=True)
class Compare:
    """Train with each method on each task over paired seeds; print a table and write a report.

    Every method gets the same number of gradient evaluations, and sigma and rho are chosen on validation data alone.

    Attributes:
        methods: What to compare.
        tasks: On what.
        seeds: Paired seeds. With fewer than six the exact test cannot reach p = 0.05.
        budget: Gradient evaluations of each run, the same for every method.
        out: The run folder: new, empty, or one to continue.
        workers: Processes; one for each core if not given. The numbers do not depend on it.
        device: Where to train, as torch names it: cpu, cuda, cuda:1, mps.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.arg(help=_METHODS_HELP)] = tuple(METHODS)
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help=_TASKS_HELP)] = tuple(TASKS)
    seeds: int = 8
    budget: int = 1200
    out: Path = DEFAULT_FOLDER
    workers: int | None = None
    device: str = "cpu"
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        from flatmin_lab.compare import check, compare
        from flatmin_lab.progress import Display
        from flatmin_lab.spec import CompareSpec
        from flatmin_lab.store import Store

        asked = CompareSpec(
            tasks=tuple(dict.fromkeys(self.tasks)),
            methods=tuple(dict.fromkeys(self.methods)),
            seeds=self.seeds,
            budget=self.budget,
            device=self.device,
        )
        workers = _num_cores() if self.workers is None else self.workers
        check(asked, workers)
        display = Display(Console(stderr=True))
        with Store(self.out, display.note) as store:
            with display:
                comparison = compare(asked, store, workers=workers, watch=display)
            _present(comparison, store, as_json=self.json)


@dataclass(frozen=True)
class Report:
    """Print the table of a finished comparison and write its report again, from stored results alone.

    Attributes:
        folder: The run folder.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    folder: tyro.conf.Positional[Path] = DEFAULT_FOLDER
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        from flatmin_lab.compare import assemble
        from flatmin_lab.store import Store

        messages = Console(stderr=True)
        with Store(self.folder, messages.print, new=False) as store:
            _present(assemble(store.header().asked, store), store, as_json=self.json)


Command = Compare | Report


def _num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _present(comparison: Comparison, store: Store, *, as_json: bool) -> None:
    from rich.console import Console

    from flatmin_lab.compare import publish
    from flatmin_lab.report.table import console_table

    files = publish(comparison, store)
    if as_json:
        print(_as_json(comparison, files))  # noqa: T201  (the result)
        return
    console = Console()
    console.print(console_table(comparison))
    console.print(f"Report: {files['report']}", highlight=False, soft_wrap=True)


def _as_json(comparison: Comparison, files: dict[str, Path]) -> str:
    """The summary for programs: strict JSON, in which what is not known is null."""
    from flatmin_lab.report.table import summary_frame

    everything: dict[str, Any] = comparison.model_dump(mode="json", include={"spec", "selections", "environment"})
    everything["summary"] = json.loads(summary_frame(comparison).to_json(orient="records") or "[]")
    everything["files"] = {name: str(path) for name, path in files.items()}
    return json.dumps(everything, indent=2, allow_nan=False)
