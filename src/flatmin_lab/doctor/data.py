"""Data that are not part of flatmin: whether a data root is named and can be read, and what is missing for what."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flatmin_lab.doctor.finding import Finding, note, ok, problem
from flatmin_lab.doctor.probe import ask

VARIABLE = "FLATMIN_DATA"


def check_data(given: Path | None) -> Iterator[Finding]:
    """Examine the data root, what each task needs of it, and how far the reproductions are.

    Args:
        given: The data root; what the environment names if None.
    """
    named = str(given) if given is not None else os.environ.get(VARIABLE, "")
    yield _root(named)
    answer = ask("needs", *([named] if named else []))
    tasks = [line for line in answer.lines if "task" in line]
    recipes = [line for line in answer.lines if "recipe" in line]
    if answer.fault:
        yield problem(
            f"What tasks and reproductions need cannot be told: the process that looks {answer.fault}.",
            "torch or a package of flatmin[lab] is broken; see above.",
            "flatmin reproduce --list",
        )
    yield from _files(tasks, named)
    yield from _recipes(recipes)


def _root(named: str) -> Finding:
    if not named:
        return note(
            f"No data root is named: {VARIABLE} is not set.",
            "everything that is part of flatmin works without it.",
            f"export {VARIABLE}=~/data",
        )
    try:
        if not Path(named).exists():
            return problem(f"The data root {named} does not exist.", "a typing mistake.", f"mkdir --parents '{named}'")
        with os.scandir(named) as entries:
            first = next(iter(entries), None)
    except NotADirectoryError:
        return problem(f"The data root {named} is a file.", "a typing mistake.", f"export {VARIABLE}=~/data")
    except OSError as error:
        return problem(
            f"The data root {named} cannot be read: {error.strerror or error}.",
            "it belongs to another user, or its disk is gone.",
            f"sudo chmod --recursive a+rX '{named}'",
        )
    if first is None:
        return note(f"The data root {named} is empty.", "nothing was put there yet.", "flatmin reproduce --list")
    return ok(f"The data root {named} can be read.")


def _files(tasks: Sequence[dict[str, Any]], named: str) -> Iterator[Finding]:
    """One finding for each thing that is to be had in one place and is missing, with all the tasks that want it."""
    if not tasks:
        return
    whole = [t["task"] for t in tasks if not t["lacking"]]
    yield ok(f"{len(whole)} of {len(tasks)} tasks have all that they need: {', '.join(whole)}.")
    files: dict[str, dict[str, None]] = {}  # each source's, in order and once
    wanting: dict[str, dict[str, None]] = {}
    for task in tasks:
        for file, source in task["lacking"].items():
            files.setdefault(source, {})[file] = None
            wanting.setdefault(source, {})[task["task"]] = None
    for source, missing in files.items():
        yield note(
            f"{', '.join(missing)}: missing, for {', '.join(wanting[source])}.",
            "it is not part of flatmin, which downloads nothing.",
            f"under {named or '$' + VARIABLE}, put {source}",
        )


def _recipes(recipes: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for size in dict.fromkeys(line["size"] for line in recipes):
        states = {line["recipe"]: line["state"] for line in recipes if line["size"] == size}
        able = [name for name, state in states.items() if _is_able(state)]
        found = f"{len(able)} of {len(states)} reproductions can be made at size {size}"
        if len(able) == len(states):
            yield ok(f"{found}.")
        else:
            lacking = ", ".join(name for name in states if name not in able)
            yield note(f"{found}; not {lacking}.", "data or packages are missing.", "flatmin reproduce --list")


def _is_able(state: str) -> bool:
    return state in ("begun", "not run") or state.startswith("finished")
