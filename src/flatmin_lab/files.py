"""Files that are either whole or not there, and messages for the disks that will not take them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flatmin_lab.errors import StoreError

_FULL = "Likely cause: the disk or your quota is full. Free some space, or choose another folder with --out"
_READ_ONLY = "Likely cause: the folder or its disk is read-only for you. Choose another folder with --out"
_NO_FOLDER = "Likely cause: a file stands where a folder should be. Choose another folder with --out"

_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.EROFS: _READ_ONLY,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
}
_OTHERWISE = "Check the folder and its disk, or choose another one with --out"


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an operating system's error into one message with its likely cause and the remedy.

    Args:
        path: What is being worked on.
        doing: ``write`` or ``read``.

    Yields:
        Nothing.

    Raises:
        StoreError: The body raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, _OTHERWISE)
        raise StoreError(
            f"Cannot {doing} {path}: {error.strerror or error}. {advice}. "
            "Finished results are kept, and the same command continues with them."
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: whoever reads ``path`` finds all of it or the former one.

    Args:
        path: Where; missing folders are made.
        content: What.

    Raises:
        StoreError: It cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
