"""``flatmin train``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from flatmin_lab.methods import METHODS
from flatmin_lab.spec import Changes
from flatmin_lab.tasks import TASKS

if TYPE_CHECKING:
    from flatmin_lab.spec import RunResult

_TASK_HELP = f"What to train on: {'; '.join(f'{t.name} ({t.summary})' for t in TASKS.values())}."
_METHOD_HELP = f"How to train: {', '.join(f'{m.name} ({m.label})' for m in METHODS.values())}."


@dataclass(frozen=True)
class MethodFlags:
    """The method and its one hyperparameter.

    Attributes:
        name: How to train.
        sigma: Standard deviation of the noise, of methods that add noise.
        rho: Radius, of methods that climb.
        alpha: Share of the smoothed label, of label smoothing.
    """

    name: Annotated[str | None, tyro.conf.arg(help=_METHOD_HELP)] = None
    sigma: float | None = None
    rho: float | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Train:
    """Make one run and keep it in a folder: configuration, environment, metrics as they come, weights, result.

    What is not given comes from the file, and else is as it is by default. An interrupted run goes on where it was;
    a finished one is printed again.

    Attributes:
        file: TOML with any of the fields below; flags win over it.
        task: What to train on.
        method: How to train.
        budget: Gradient evaluations; 1200 by default.
        seed: Seed of everything random; 0 by default.
        device: Where to train, as torch names it: cpu, cuda, cuda:1, mps.
        changes: What is done otherwise than the task has it.
        parallel: How the processes that torchrun started share the run: replicas (ddp) or shards (fsdp).
        measure: Whether trace and largest eigenvalue are measured after training; True by default.
        checkpoint_seconds: Time between checkpoints; 30 by default, 0 for one after each step.
        track: What is told of the run as it goes, beside its folder, which has it all.
        out: The run folder: new, empty, or one to continue; one under runs/train if not given.
        json: Print the result as JSON, and nothing else, on standard output.
    """

    file: tyro.conf.Positional[Path | None] = None
    task: Annotated[str | None, tyro.conf.arg(help=_TASK_HELP)] = None
    method: MethodFlags = field(default_factory=MethodFlags)
    budget: int | None = None
    seed: int | None = None
    device: str | None = None
    changes: Changes = field(default_factory=Changes)
    parallel: Literal["none", "ddp", "fsdp"] | None = None
    measure: bool | None = None
    checkpoint_seconds: float | None = None
    track: Literal["trackio", "wandb", "tensorboard"] | None = None
    out: Path | None = None
    json: bool = False

    def run(self) -> None:
        """Do it.

        Raises:
            LabError: The run diverged, which is printed and kept like any result.
        """
        from rich.console import Console

        from flatmin_lab.errors import LabError
        from flatmin_lab.train.config import read_config
        from flatmin_lab.train.progress import RunBar
        from flatmin_lab.train.ranks import told_by_rank
        from flatmin_lab.train.single import run_single

        with told_by_rank():
            config = read_config(self.file, self._given())
            folder = config.folder if self.out is None else self.out
            with RunBar(Console(stderr=True)) as bar:
                result = run_single(config, folder, bar)
        if result is None:  # the first rank tells
            return
        _present(result, folder, as_json=self.json)
        if result.status == "diverged":
            raise LabError(result.message)

    def _given(self) -> dict[str, Any]:
        """The fields of the configuration that were given as flags."""
        everything: dict[str, Any] = {**asdict(self), "changes": self.changes.model_dump()}
        fields = {name: value for name, value in everything.items() if name not in ("file", "out", "json")}
        tables = {name: _without_none(value) for name, value in fields.items() if isinstance(value, dict)}
        return _without_none({**fields, **tables})


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _present(result: RunResult, folder: Path, *, as_json: bool) -> None:
    """Show one run."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        everything = {**json.loads(result.model_dump_json()), "folder": str(folder)}  # NaN as text, as in the folder
        print(json.dumps(everything, indent=2, allow_nan=False))  # noqa: T201  (the result)
        return
    console = Console()
    if result.status == "finished":
        table = Table(title=result.spec.name)
        table.add_column("what")
        table.add_column("value", justify="right")
        for name, value in _rows(result):
            table.add_row(name, value)
        console.print(table)
    console.print(f"Folder: {folder}", highlight=False, soft_wrap=True)


def _rows(result: RunResult) -> list[tuple[str, str]]:
    from flatmin_lab.tasks import task

    metric = task(result.spec.task).metric
    rows = []
    for split in ("test", "validation", "train"):
        accuracy, loss = getattr(result, f"{split}_accuracy"), getattr(result, f"{split}_loss")
        rows += [(f"{split} {metric}", f"{accuracy:.1%}"), (f"{split} loss", f"{loss:.4f}")]
    live = result.history[-1].live_trace if result.history else None
    if live is not None:
        rows.append(("trace, live", _with_error(live, result.history[-1].live_trace_stderr)))
    if result.trace is not None:
        rows.append(("trace", _with_error(result.trace, result.trace_stderr)))
    if result.top_eigenvalue is not None:
        rows.append(("largest eigenvalue", f"{result.top_eigenvalue:.4g}"))
    seconds, evaluations = f"{result.seconds:.1f} s", str(result.gradient_evaluations)
    return [*rows, ("gradient evaluations", evaluations), ("training time", seconds)]


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
