"""The commands of ``flatmin``: each is a class whose fields are its options.

A new command is added to `Command` and nowhere else. What a command needs is imported where it runs, so that help
appears at once.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from flatmin_lab.data.examples import DATA
from flatmin_lab.methods import METHODS
from flatmin_lab.tasks import TASKS

if TYPE_CHECKING:
    from flatmin_lab.measure import MeasureSpec, Sheet
    from flatmin_lab.spec import Comparison
    from flatmin_lab.store import Store

DEFAULT_FOLDER = Path("runs/compare")

_METHODS_HELP = f"What to compare: {', '.join(f'{m.name} ({m.label})' for m in METHODS.values())}."
_DATA_HELP = (
    f"The examples; those that go with the model if not given: {'; '.join(f'{n} ({s})' for n, s in DATA.items())}."
)
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
class Measure:
    """Measure how curved the loss is at given weights; print a table and write a report with figures.

    Without --trace, --eigenvalues, --density, --layers and --gap all but the gap are measured. Files are read as
    tensors alone; nothing in them is executed.

    Attributes:
        weights: A file (.safetensors, or a state dict as .pt), the folder of a finished run of `flatmin compare`, or a
            folder of transformers.
        trace: The trace of the Hessian, exact where it can be, else to --rtol.
        eigenvalues: So many eigenvalues of the Hessian, those of largest magnitude.
        density: The density of the Hessian's spectrum.
        layers: The trace of each layer's block, and its share.
        gap: The rise of the loss under noise of this standard deviation in the weights.
        rtol: Relative standard error of the trace to reach.
        model: What the weights belong to; found by their names if not given.
        head_seed: For a transformer without a trained head: the seed of a fresh one.
        data: The examples; those that go with the model if not given.
        data_root: Folder of data that are not part of flatmin; $FLATMIN_DATA if not given.
        split: Those to train on, or those to test with.
        examples: How many, at most.
        batch_size: Examples in a batch: more take more memory and less time.
        seed: Seed of everything random.
        device: Where to compute, as torch names it: cpu, cuda, cuda:1, mps.
        out: The folder to write into; one under runs/measure if not given.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    weights: tyro.conf.Positional[Path]
    trace: bool = False
    eigenvalues: int | None = None
    density: bool = False
    layers: bool = False
    gap: float | None = None
    rtol: float = 0.02
    model: str = "auto"
    head_seed: int | None = None
    data: Annotated[str | None, tyro.conf.arg(help=_DATA_HELP)] = None
    data_root: Path | None = None
    split: Literal["train", "test"] = "train"
    examples: int = 512
    batch_size: int = 128
    seed: int = 0
    device: str = "cpu"
    out: Path | None = None
    json: bool = False

    def run(self) -> None:
        """Do it."""
        from rich.console import Console

        from flatmin_lab.measure import Measuring, folder_for, prepare
        from flatmin_lab.parts import PartBars

        messages = Console(stderr=True)
        spec, subject, examples = prepare(self._spec(), self.data_root)
        folder = folder_for(spec) if self.out is None else self.out
        with Measuring(folder, messages.print) as measuring:
            with PartBars(messages) as progress:
                sheet = measuring.run(spec, subject, examples, progress)
            _present_sheet(sheet, folder, as_json=self.json)

    def _spec(self) -> MeasureSpec:
        from flatmin_lab.measure import MeasureSpec

        everything = not (self.trace or self.density or self.layers or self.eigenvalues or self.gap is not None)
        return MeasureSpec(
            weights=str(self.weights),
            trace=self.trace or everything,
            eigenvalues=5 if everything and self.eigenvalues is None else self.eigenvalues or 0,
            density=self.density or everything,
            layers=self.layers or everything,
            gap=self.gap,
            rtol=self.rtol,
            model=self.model,
            head_seed=self.head_seed,
            data=self.data,
            split=self.split,
            examples=self.examples,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
        )


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

        from flatmin_lab.compare import assemble
        from flatmin_lab.store import Store

        messages = Console(stderr=True)
        if (self.folder / "measurement.json").is_file():
            from flatmin_lab.measure import load_sheet

            _present_sheet(load_sheet(self.folder), self.folder, as_json=self.json)
            return
        with Store(self.folder, messages.print, new=False) as store:
            _present(assemble(store.header().asked, store), store, as_json=self.json)


Command = Compare | Measure | Report


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


def _present_sheet(sheet: Sheet, folder: Path, *, as_json: bool) -> None:
    from rich.console import Console

    from flatmin_lab.report.measured import publish_sheet, sheet_table

    files = publish_sheet(sheet, folder)
    if as_json:
        everything = {**sheet.to_dict(), "files": {name: str(path) for name, path in files.items()}}
        print(json.dumps(everything, indent=2, allow_nan=False))  # noqa: T201  (the result)
        return
    console = Console()
    console.print(sheet_table(sheet))
    console.print(f"Report: {files['report']}", highlight=False, soft_wrap=True)


def _as_json(comparison: Comparison, files: dict[str, Path]) -> str:
    """The summary for programs: strict JSON, in which what is not known is null."""
    from flatmin_lab.report.table import summary_frame

    everything: dict[str, Any] = comparison.model_dump(mode="json", include={"spec", "selections", "environment"})
    everything["summary"] = json.loads(summary_frame(comparison).to_json(orient="records") or "[]")
    everything["files"] = {name: str(path) for name, path in files.items()}
    return json.dumps(everything, indent=2, allow_nan=False)
