"""The folder of one run: that of a run among others, with its configuration and its history as it comes.

::

    runs/train/digits-noisy/nso-0.05/seed3-5c1d72f0/
        config.toml  spec.json  environment.json
        metrics.jsonl         one line for each point of the history
        checkpoint.pt         where training goes on; gone once it is finished
        weights.safetensors  result.json
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from flatmin.errors import ArgumentError
from flatmin_lab.environment import environment
from flatmin_lab.errors import StoreError
from flatmin_lab.files import explained
from flatmin_lab.spec import Point, RunSpec
from flatmin_lab.store import Store
from flatmin_lab.train.checkpoint import CHECKPOINT
from flatmin_lab.train.config import TrainConfig, read_config

CONFIG, METRICS = "config.toml", "metrics.jsonl"
_PROGRESS = ("result.json", CHECKPOINT)


class RunFolder(Store):
    """A store whose only run lies in the folder itself: locked, written whole, and mended where it is damaged.

    Args:
        folder: Where; made if it is missing.
        note: Told in one line about everything unusual that is found there.

    Raises:
        LockedError: On entering, where another process works in the folder.
        StoreError: On entering, where the folder cannot be written.
    """

    def folder_of(self, spec: RunSpec) -> Path:
        """The folder itself, whatever the run."""
        del spec
        return self.folder

    def claim(self, config: TrainConfig) -> None:
        """Take up the folder for a run: a new or empty one, or one that was begun with the same.

        Args:
            config: The run. What its numbers do not depend on may differ from before.

        Raises:
            StoreError: It was begun for another run, or holds other files.
        """
        path = self.folder / CONFIG
        if path.is_file():
            if any((self.folder / name).exists() for name in _PROGRESS):
                self._require_same(config)
                self._tell_changes()
        elif strangers := sorted(p.name for p in self.folder.iterdir() if p.name != ".lock"):
            raise StoreError(
                f"{self.folder} holds other files ({', '.join(strangers[:3])}, ...) and no run of flatmin train. "
                "Likely cause: another folder was meant. Choose a new or empty folder with --out."
            )
        self.write(CONFIG, config.toml())
        self.write("spec.json", config.spec.model_dump_json(indent=2))

    def start(self, history: Iterable[Point], here: dict[str, str]) -> None:
        """Write what is known as training begins or goes on: lines past the checkpoint are taken back.

        Args:
            history: The points up to where training goes on.
            here: Machine and software.
        """
        self.write("environment.json", json.dumps(here, indent=2))
        self.write(METRICS, "".join(_line(point) for point in history))

    def add(self, point: Point) -> None:
        """Append a point of the history."""
        path = self.folder / METRICS
        with explained(path, "write"), path.open("a") as file:
            file.write(_line(point))

    def _require_same(self, config: TrainConfig) -> None:
        path = self.folder / CONFIG
        try:
            former = read_config(path, {}).identity
        except ArgumentError as error:
            raise StoreError(
                f"{path} cannot be read ({error}). Likely cause: it was edited, or written by another version of "
                "flatmin. Choose another folder with --out."
            ) from error
        wanted = config.identity
        differing = [f"{n} is {former[n]!r} there and {wanted[n]!r} here" for n in wanted if former[n] != wanted[n]]
        if differing:
            raise StoreError(
                f"{self.folder} was begun for another run: {'; '.join(differing)}. Choose another folder with --out."
            )

    def environment(self) -> dict[str, str]:
        """What the run was trained with, as far as that is known."""
        try:
            return dict(json.loads((self.folder / "environment.json").read_bytes()))
        except (OSError, ValueError):
            return environment()

    def _tell_changes(self) -> None:
        former, here = self.environment(), environment()
        changed = [f"{k} {former[k]} (now {v})" for k, v in here.items() if former.get(k, v) != v]
        if changed:
            self.note(f"{self.folder} was begun with {', '.join(changed)}: numbers may differ in the last digits.")


def read_metrics(folder: Path) -> list[Point]:
    """The history of a run so far, finished or not; a last line that is half written is left out.

    Args:
        folder: The run's.

    Returns:
        Its points.

    Raises:
        StoreError: There are none, or a line in the middle cannot be read.
    """
    path = folder / METRICS
    with explained(path, "read"):
        lines = path.read_text().split("\n")
    # What follows the last line's end was being written as the process ended; or it is empty.
    try:
        return [Point.model_validate_json(line) for line in lines[:-1]]
    except ValidationError as error:
        raise StoreError(
            f"{path} cannot be read. Likely cause: it was edited, or written by another version of flatmin. Give the "
            "same `flatmin train` again if the run is unfinished: it writes the file anew."
        ) from error


def _line(point: Point) -> str:
    return point.model_dump_json() + "\n"
