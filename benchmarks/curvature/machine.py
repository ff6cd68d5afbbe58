"""The machine: what numbers belong to, and how several jobs on it keep out of each other's way."""

from __future__ import annotations

import datetime as dt
import fcntl
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

PACKAGES = ("curvlinops-for-pytorch", "hessian-eigenthings", "transformers", "scipy")


class Lock:
    """Held while something is timed or computed for long, where several jobs share a machine.

    It is kept from one use to the next until a turn is over, so that waiting is rare.

    Args:
        path: A file; None locks nothing.
        turn: Seconds after which others are let in, between two uses.
    """

    def __init__(self, path: Path | None, turn: float = 300.0) -> None:
        self._path, self._turn = path, turn
        self._file: IO[str] | None = None
        self._since = 0.0

    def __enter__(self) -> None:
        if self._path is not None and self._file is None:
            self._file = self._path.open("a")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._file is not None and time.monotonic() - self._since > self._turn:
            self.release()

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None


def load() -> float:
    """Return how many processes wanted to run in the last minute."""
    return os.getloadavg()[0]


def about(versions: dict[str, str]) -> dict[str, str]:
    """Return date, hardware and versions."""
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "hardware": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **versions,
    }


def cores() -> str:
    """Return how many cores there are, and of which processor."""
    return f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores ({_processor()})"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
