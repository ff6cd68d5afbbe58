"""The run folder: every finished result on disk at once, and nothing taken up that does not belong.

::

    runs/compare/
        compare.json                              what makes the runs comparable, and what was last asked for
        runs/digits-noisy/nso-0.1/seed3-5c1d72f0/         (the run's name and the hash of its specification)
            spec.json  environment.json  weights.safetensors  surface.json
            result.json                                   (a run is finished when this is there)
        comparison.json  results.csv  report.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import safetensors.torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from flatmin_lab.environment import environment
from flatmin_lab.errors import StoreError
from flatmin_lab.files import explained, write_whole
from flatmin_lab.header import Header, comparable, require_comparable
from flatmin_lab.job import Outcome
from flatmin_lab.lock import FolderLock
from flatmin_lab.spec import RunResult, RunSpec, Study, Surface

WEIGHTS = "weights.safetensors"
"""The file of a run's weights in its folder."""

_Stored = TypeVar("_Stored", bound=BaseModel)


class Store:
    """Results of one run folder, read and written by one process at a time.

    Args:
        folder: Where.
        note: Told in one line about everything unusual that is found there.
        new: Whether the folder is made where it does not exist.

    Raises:
        LockedError: On entering, where another process works in the folder.
        StoreError: On entering, where the folder cannot be written.
    """

    def __init__(self, folder: Path, note: Callable[[str], object] = lambda _: None, *, new: bool = True) -> None:
        self.folder = folder
        self._new = new
        self.note = note
        self._lock = FolderLock(folder)
        self._results: dict[RunSpec, RunResult] = {}
        self._redone: set[RunSpec] = set()

    def __enter__(self) -> Self:
        with explained(self.folder, "write"):
            if self._new:
                self.folder.mkdir(parents=True, exist_ok=True)
            elif not (self.folder / "compare.json").exists():
                raise StoreError(
                    f"{self.folder} holds no comparison: there is no compare.json in it. Likely cause: another folder "
                    f"was meant. Name that one, or begin one here: flatmin compare --out {self.folder}"
                )
            self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def header(self) -> Header:
        """What the folder says of itself.

        Returns:
            The header.

        Raises:
            StoreError: It cannot be read.
        """
        path = self.folder / "compare.json"
        with explained(path, "read"):
            try:
                return Header.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise StoreError(
                    f"{path} cannot be read ({_brief(error)}). Likely cause: it was edited, or written by another "
                    "version of flatmin. Restore it, or begin in another folder with --out."
                ) from error

    def begin(self, asked: Study) -> None:
        """Take up the folder for ``asked``, whether it is new or has finished runs.

        Args:
            asked: What is asked for.

        Raises:
            StoreError: The folder holds something else, or runs that cannot be compared with those asked for.
        """
        here = environment()
        if (self.folder / "compare.json").exists():
            former = self.header()
            require_comparable(former, self.folder)
            changed = [f"{k} {v} (now {here.get(k)})" for k, v in former.environment.items() if here.get(k) != v]
            if changed:
                self.note(f"{self.folder} was begun with {', '.join(changed)}: numbers may differ in the last digits.")
            here = former.environment
        elif strangers := sorted(p.name for p in self.folder.iterdir() if p.name != ".lock"):
            raise StoreError(
                f"{self.folder} holds other files ({', '.join(strangers[:3])}, ...) and no comparison. Likely cause: "
                "another folder was meant. Choose a new or empty folder with --out."
            )
        header = Header(comparable=comparable(), asked=asked, environment=here)
        self.write("compare.json", header.model_dump_json(indent=2))

    def result(self, spec: RunSpec) -> RunResult | None:
        """The stored result of a run, or None if it is yet to be made; a damaged one is reported and made again.

        Args:
            spec: The run.

        Returns:
            Its result.
        """
        if spec not in self._results and spec not in self._redone:
            folder = self.folder_of(spec)
            found = self._read(folder / "result.json", RunResult)
            if found is not None and self._is_sound(found, spec):
                self._results[spec] = found
        return self._results.get(spec)

    def results(self, specs: Sequence[RunSpec]) -> list[RunResult]:
        """The stored results of runs that must all be there.

        Args:
            specs: The runs.

        Returns:
            Their results.

        Raises:
            StoreError: Some are missing.
        """
        found = [(spec, self.result(spec)) for spec in specs]
        missing = [spec for spec, result in found if result is None]
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(specs)} runs are missing in {self.folder}, the first is {missing[0].name}. "
                f"Likely cause: the comparison was interrupted. Finish it: flatmin compare --out {self.folder}"
            )
        return [result for _, result in found if result is not None]

    def surface(self, spec: RunSpec) -> Surface | None:
        """The stored loss surface of a run, or None."""
        return self._read(self.folder_of(spec) / "surface.json", Surface)

    def weights(self, spec: RunSpec) -> Path:
        """The file of a finished run's weights."""
        return self.folder_of(spec) / WEIGHTS

    def save(self, outcome: Outcome) -> None:
        """Write what came of a job; its result comes last and makes it count.

        Args:
            outcome: The result and what is new besides.

        Raises:
            StoreError: It cannot be written.
        """
        spec = outcome.result.spec
        folder = self.folder_of(spec)
        if outcome.weights is not None:
            write_whole(folder / WEIGHTS, outcome.weights)
        if outcome.surface is not None:
            write_whole(folder / "surface.json", outcome.surface.model_dump_json().encode())
        write_whole(folder / "spec.json", spec.model_dump_json(indent=2).encode())
        write_whole(folder / "environment.json", json.dumps(outcome.environment, indent=2).encode())
        write_whole(folder / "result.json", outcome.result.model_dump_json().encode())
        self._results[spec] = outcome.result

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder itself.

        Args:
            name: Its name.
            text: Its content.

        Returns:
            Its path.
        """
        write_whole(self.folder / name, text.encode())
        return self.folder / name

    def folder_of(self, spec: RunSpec) -> Path:
        """The folder of one run."""
        return self.folder / "runs" / spec.folder

    def _is_sound(self, found: RunResult, spec: RunSpec) -> bool:
        if found.spec != spec:
            return self._redo(spec, "its result is that of another specification")
        if found.status == "finished":
            try:
                safetensors.torch.load_file(self.weights(spec))
            except (OSError, SafetensorError) as error:
                return self._redo(spec, f"its weights cannot be read ({_brief(error)})")
        return True

    def _redo(self, spec: RunSpec, why: str) -> bool:
        self._redone.add(spec)
        self.note(f"{spec.name} is run again: {why}.")
        return False

    def _read(self, path: Path, kind: type[_Stored]) -> _Stored | None:
        with explained(path, "read"):
            try:
                return kind.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                return None
            except ValidationError as error:
                self.note(f"{path} is made again: it cannot be read ({_brief(error)}).")
                return None


def _brief(error: Exception) -> str:
    """The first line that says something."""
    if isinstance(error, ValidationError):
        first: Any = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return (str(error) or type(error).__name__).strip().splitlines()[0]
