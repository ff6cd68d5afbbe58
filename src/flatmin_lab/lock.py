"""One process at a time in a folder, and one thing."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from flatmin_lab.errors import LockedError, StoreError
from flatmin_lab.files import explained, write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LOCK, _ASKED = ".lock", "recipe.json"


class FolderLock:
    """Holds a folder while it is entered; the operating system lets go of it if the process dies.

    Args:
        folder: An existing folder.

    Raises:
        LockedError: On entering, where another process holds it; the message names its process id.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / _LOCK
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock, or say who holds it."""
        if fcntl is None:
            self._acquire_by_name()
        else:
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise self._taken() from None
            self._file = file
            file.truncate(0)
        assert self._file is not None  # noqa: S101  (both branches set it or raise)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go. The file stays where the system's lock is used: removing it would race with the next holder."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if fcntl is None:
                self._path.unlink(missing_ok=True)

    def _acquire_by_name(self) -> None:
        try:
            self._file = self._path.open("x")
        except FileExistsError:
            raise self._taken() from None

    def _taken(self) -> LockedError:
        holder = self._path.read_text().strip() or "unknown"
        message = (
            f"{self.folder} is in use by another process (pid {holder}). Likely cause: a flatmin command is still "
            "running there. Wait until it has finished, or choose another folder with --out."
        )
        if fcntl is None:
            message += f" If that process no longer runs, delete {self._path}."
        return LockedError(message)


@contextmanager
def held(folder: Path, what: str, marks: Collection[str]) -> Iterator[None]:
    """Hold a folder for a kind of thing: a new one, an empty one, or one in which such a thing was begun.

    Args:
        folder: The folder; made if it is missing.
        what: The kind, in a word.
        marks: Names of files and folders, one of which a folder has in which it was begun.

    Yields:
        Nothing.

    Raises:
        LockedError: Another process works there.
        StoreError: It holds something else, or cannot be written.
    """
    lock = FolderLock(folder)
    with explained(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()} - {_LOCK}
        if names and names.isdisjoint(marks):
            raise StoreError(
                f"{folder} holds other files ({', '.join(sorted(names)[:3])}, ...) and no {what}. Likely cause: "
                "another folder was meant. Choose a new or empty folder with --out."
            )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def kept_for(folder: Path, asked: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder for what was asked for: a new one, an empty one, or one that was begun with the same.

    Args:
        folder: The folder; made if it is missing.
        asked: What is made there, as JSON has it; kept in ``recipe.json``.

    Yields:
        Nothing.

    Raises:
        LockedError: Another process works there.
        StoreError: It was begun for something else, holds other files, or cannot be written.
    """
    lock = FolderLock(folder)
    with explained(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        _claim(folder, json.dumps(asked, sort_keys=True))
        yield
    finally:
        lock.release()


def _claim(folder: Path, asked: str) -> None:
    path = folder / _ASKED
    if path.is_file():
        with explained(path, "read"):
            former = path.read_text(errors="replace")
        if former != asked:
            raise StoreError(f"{folder} was begun for {former}, and this is {asked}. Choose another folder with --out.")
        return
    strangers = sorted(p.name for p in folder.iterdir() if p.name != _LOCK)
    if strangers:
        raise StoreError(
            f"{folder} holds other files ({', '.join(strangers[:3])}, ...). Choose a new or empty folder with --out."
        )
    write_whole(path, asked.encode())
