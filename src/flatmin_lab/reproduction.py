"""A reproduction from the command line: its folder, what is kept there, and what is not done twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatmin
from flatmin.checks import choice, whole
from flatmin.errors import ArgumentError, FlatminError
from flatmin_lab.environment import environment
from flatmin_lab.files import explained, write_whole
from flatmin_lab.lock import kept_for
from flatmin_lab.recipes.outcome import Table, Watch, publish
from flatmin_lab.recipes.registry import SIZES
from flatmin_lab.recipes.reproductions import REPRODUCTIONS
from flatmin_lab.spec import Value

RECORD = "reproduction.json"
RUNS = "sweep"
"""Where in its folder a reproduction keeps the runs it is made of."""


class ReproductionRecord(Value):
    """What a reproduction found, as it is stored beside its files.

    Attributes:
        name: A key of ``REPRODUCTIONS``.
        size: ``"toy"``, ``"small"`` or ``"paper"``.
        seed: Of everything random.
        paper: Where in the paper it stands.
        text: What the paper says and what was found, in Markdown.
        tables: As on the page.
        files: What each file holds, to its name in the folder.
        seconds: How long it took.
        environment: Machine and software.
    """

    name: str
    size: str
    seed: int
    paper: str
    text: str
    tables: tuple[Table, ...]
    files: dict[str, str]
    seconds: float
    environment: dict[str, str]


def reproduce(
    name: str,
    size: str,
    folder: Path,
    *,
    seed: int = 0,
    tasks: tuple[str, ...] = (),
    runs: Path | None = None,
    watch: Watch = lambda *_: None,
    note: Callable[[str], object] = lambda _: None,
) -> ReproductionRecord:
    """Make a table or figure of a paper again, unless this version of flatmin has done so in ``folder``.

    Args:
        name: A key of ``REPRODUCTIONS``.
        size: ``"toy"``, ``"small"`` or ``"paper"``.
        folder: Where data, figures and page are written.
        seed: Of everything random.
        tasks: Of a reproduction that is made of runs, only these of the size's tasks; empty for all.
        runs: Where it keeps its runs; several reproductions may share them. None for a folder within ``folder``.
        watch: Told of the progress.
        note: Told in one line about everything unusual.

    Raises:
        ArgumentError: There is no such reproduction, size or task.
        StoreError: The folder holds something else, or cannot be written.
    """
    choice("name", name, REPRODUCTIONS)
    choice("size", size, SIZES)
    whole("seed", seed, minimum=0, hint="It is the seed of everything random.")
    if (tasks or runs) and not REPRODUCTIONS[name].keeps_runs:
        raise ArgumentError(f"{name} is not made of runs on tasks, so it has no tasks to choose from and keeps none.")
    wanted = {"reproduction": name, "size": size, "seed": seed, **({"tasks": " ".join(tasks)} if tasks else {})}
    with kept_for(folder, wanted):
        former = _finished(folder / RECORD, note)
        if former is not None:
            note(f"{folder} has it finished; nothing is computed again.")
            return former
        given = {"folder": runs or folder / RUNS, "tasks": tasks} if REPRODUCTIONS[name].keeps_runs else {}
        record = _made(name, size, seed, folder, watch, given)
        write_whole(folder / RECORD, record.model_dump_json(indent=2).encode())  # last: now it is finished
        return record


def folder_for(name: str, size: str, seed: int = 0, tasks: tuple[str, ...] = ()) -> Path:
    """Where a reproduction is kept if nothing else is said."""
    return Path("runs/reproduce") / "-".join((name, size, f"seed{seed}", *tasks))


def state(name: str, size: str, folder: Path) -> str:
    """Say how far a reproduction is: ``finished``, ``begun``, ``not run``, or what it lacks.

    Args:
        name: A key of ``REPRODUCTIONS``.
        size: ``"toy"``, ``"small"`` or ``"paper"``.
        folder: Where it is or would be kept.
    """
    former = _finished(folder / RECORD, lambda _: None)
    if former is not None:
        return f"finished in {former.seconds:,.0f} s"
    try:
        REPRODUCTIONS[name].require(size)
    except FlatminError as error:
        return str(error)
    return "begun" if folder.exists() else "not run"


def _made(name: str, size: str, seed: int, folder: Path, watch: Watch, given: dict[str, Any]) -> ReproductionRecord:
    entry, begin = REPRODUCTIONS[name], time.monotonic()
    found = entry.load()(size, seed, watch, **given)
    return ReproductionRecord(
        name=name,
        size=size,
        seed=seed,
        paper=entry.paper,
        text=found.text,
        tables=found.tables,
        files=publish(found, folder, title=f"{name}: {entry.summary}"),
        seconds=round(time.monotonic() - begin, 2),
        environment=environment(),
    )


def _finished(path: Path, note: Callable[[str], object]) -> ReproductionRecord | None:
    """Return what an earlier call finished, if it was of this version."""
    if not path.is_file():
        return None
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        record = ReproductionRecord.model_validate_json(content)
    except ValueError:  # pydantic's own is one
        note(f"{path} is made again: it cannot be read.")
        return None
    version = record.environment.get("flatmin", "of an unknown version")
    if version != flatmin.__version__:
        note(f"{path} is made again: it is of flatmin {version}.")
        return None
    return record
