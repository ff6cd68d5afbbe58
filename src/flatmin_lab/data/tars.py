"""What tar archives hold, file after file, in one pass over the archive."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from typing import TYPE_CHECKING

from flatmin.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAILURES = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)
"""What reading a damaged archive raises."""


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each file in the archive, however it is compressed, in its order.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with tarfile.open(path, "r:*") as opened:
            for member in opened:
                file = opened.extractfile(member) if member.isfile() else None  # links lead anywhere
                if file is not None:
                    yield member.name.removeprefix("./"), file.read()
    except FAILURES as error:
        raise damaged(path, error) from error


def positions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, position of the first byte and number of bytes of each file in an archive without compression.

    Raises:
        DataError: It cannot be read, or is compressed.
    """
    try:
        with tarfile.open(path, "r:") as opened:
            for member in opened:
                if member.isfile():
                    yield member.name.removeprefix("./"), member.offset_data, member.size
    except FAILURES as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DataError:
    """The error that says that ``path`` is no readable archive."""
    first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
    return DataError(f"{path} cannot be read ({first_line}). Likely cause: it is damaged. Copy it again.")
