"""One process at a time in a run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from flatmin_lab.errors import LockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class FolderLock:
    """Holds a folder while it is entered; the operating system lets go of it if the process dies.

    Args:
        folder: An existing folder.

    Raises:
        LockedError: On entering, where another process holds it; the message names its process id.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / ".lock"
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
