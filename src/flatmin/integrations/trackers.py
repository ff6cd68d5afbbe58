"""Trackers for :class:`flatmin.Monitor`, or for any loop: a file, TensorBoard, wandb, trackio.

Each has ``log(metrics, step)`` and ``close()``, and imports its package when it is made. Whatever else has these two
methods is a tracker as well.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from flatmin.errors import ArgumentError


class _Closing:
    """Closes with the block it is the context of."""

    def close(self) -> None:
        """End the run."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JsonLines(_Closing):
    """One line of JSON for each call, in a file that is there to be read while training goes on.

    A file that exists is added to; a last line that was being written as a process ended is taken away. NaN and
    infinities, which JSON has no numbers for, are ``null``.

    Args:
        path: The file; missing folders are made.
        purge_step: Step from which on what is there already is taken away, for a run that goes on.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with JsonLines(path) as tracker:
        ...     tracker.log({"loss": 0.5, "hessian_trace": float("nan")}, step=10)
        >>> print(path.read_text(), end="")
        {"step": 10, "loss": 0.5, "hessian_trace": null}
    """

    def __init__(self, path: str | os.PathLike[str], *, purge_step: int | None = None) -> None:
        self.path: Path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._keep_before(purge_step)
        self._file = self.path.open("a", encoding="utf-8", newline="\n")

    def _keep_before(self, step: int | None) -> None:
        """Take away what is not whole and what comes again, by a new file in the place of the old one."""
        if not self.path.exists():
            return
        former = self.path.read_bytes()
        lines = former[: former.rfind(b"\n") + 1].splitlines(keepends=True)
        kept = b"".join(line for line in lines if step is None or _step_of(line) < step)
        if kept != former:
            new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            new.write_bytes(kept)
            new.replace(self.path)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a line."""
        numbers = {name: number if math.isfinite(number := float(v)) else None for name, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **numbers}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step_of(line: bytes) -> float:
    """The step that a line tells of; none that could come again if it is not one of ours."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -math.inf


class TensorBoard(_Closing):
    """Scalars in a folder that ``tensorboard --logdir FOLDER`` shows; tested with tensorboard 2.21.

    Args:
        folder: Where.
        purge_step: Step from which on what is there already is not shown, for a run that goes on.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, purge_step: int | None = None) -> None:
        _imported("tensorboard")
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (optional)

        self._writer = SummaryWriter(os.fspath(folder), purge_step=purge_step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a scalar for each number."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


class _Run(_Closing):
    """A run of a package with ``init``, ``log`` and ``finish``, which talks on standard error alone."""

    def __init__(self, module: Any, run: Any, options: Mapping[str, Any]) -> None:
        self._is_own = run is None  # a run that was begun elsewhere is ended there
        with contextlib.redirect_stdout(sys.stderr):
            self.run: Any = module.init(**{"project": "flatmin", **options}) if run is None else run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand the numbers over."""
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the run, unless it was begun elsewhere."""
        if self._is_own:
            with contextlib.redirect_stdout(sys.stderr):
                self.run.finish()
        self._is_own = False


class Wandb(_Run):
    """A run of Weights & Biases, tested with wandb 0.31; ``WANDB_MODE=offline`` keeps it on this machine.

    Args:
        run: One that ``wandb.init`` returned and that is ended by whoever began it; None begins one.
        **options: For ``wandb.init``; the project is ``"flatmin"`` unless named.

    Raises:
        ArgumentError: wandb does not begin a run, for want of a login for instance.
        ModuleNotFoundError: wandb is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        wandb = _imported("wandb")
        try:
            super().__init__(wandb, run, options)
        except wandb.errors.Error as error:
            raise ArgumentError(
                f"wandb does not begin a run: {error}. Log in with `wandb login`, or keep records on this machine with "
                "WANDB_MODE=offline in the environment."
            ) from error


class Trackio(_Run):
    """A run of trackio, on this machine unless a Space is named; ``trackio show`` shows it. Tested with trackio 0.43.

    Of a run that goes on (``resume="allow"`` and a name) the steps that trackio has are not told again.

    Args:
        run: One that ``trackio.init`` returned and that is ended by whoever began it; None begins one.
        **options: For ``trackio.init``; the project is ``"flatmin"`` unless named.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        super().__init__(_imported("trackio"), run, options)
        goes_on = self._is_own and options.get("resume", "never") != "never"
        self._first = getattr(self.run, "_next_step", 0) if goes_on else 0  # trackio has no public name for it

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand the numbers over, if they are new."""
        if step >= self._first:
            super().log(metrics, step)


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"{package} is not installed, which this tracker writes to. Install it: pip install 'flatmin[track]'",
            name=package,
        ) from error
