"""``flatmin compare``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from flatmin_lab import methods as ways
from flatmin_lab import tasks as places
from flatmin_lab.clusters.options import Cluster, SlurmOptions
from flatmin_lab.methods import METHODS
from flatmin_lab.search import Name as Search
from flatmin_lab.tasks import TASKS

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
        seeds: Paired seeds. With fewer than six the exact test cannot reach p = 0.05, and after Holm's
            correction for three methods beside SGD not with fewer than seven.
        budget: Gradient evaluations of each run, the same for every method.
        out: The run folder: new, empty, or one to continue.
        workers: Runs at a time; one for each core of this machine or of the Ray cluster if not given, 16 with Slurm.
            The numbers do not depend on it.
        cluster: Where to run: on this machine, on the Ray cluster that RAY_ADDRESS names or one started here, by Slurm.
        slurm: What each run asks of Slurm.
        search: Which values of sigma, rho and alpha are tried: the published grid, or as many that Optuna suggests
            within its ends.
        device: Where to train, as torch names it: cpu, cuda, cuda:1, mps.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.arg(help=_METHODS_HELP)] = ways.MAIN
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help=_TASKS_HELP)] = places.MAIN
    seeds: int = 8
    budget: int = 1200
    out: Path = DEFAULT_FOLDER
    workers: int | None = None
    cluster: Cluster = "local"
    slurm: SlurmOptions = field(default_factory=SlurmOptions)
    search: Search = "grid"
    device: str = "cpu"
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        from flatmin_lab.commands.present import present
        from flatmin_lab.compare import check, compare
        from flatmin_lab.progress import Display
        from flatmin_lab.spec import Study
        from flatmin_lab.store import Store

        asked = Study.crossed(
            tasks=tuple(dict.fromkeys(self.tasks)),
            methods=tuple(dict.fromkeys(self.methods)),
            seeds=self.seeds,
            budget=self.budget,
            device=self.device,
            search=self.search,
        )
        check(asked, self.workers, self.cluster)
        display = Display(Console(stderr=True))
        with Store(self.out, display.note) as store:
            with display:
                comparison = compare(
                    asked, store, workers=self.workers, cluster=self.cluster, slurm=self.slurm, watch=display
                )
            present(comparison, store, as_json=self.json)
