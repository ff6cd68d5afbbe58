"""Files inside compressed archives of the data root."""

from __future__ import annotations

import lzma
import tarfile
from typing import TYPE_CHECKING

from flatmin.errors import DataError
from flatmin_lab.data.root import file_of

if TYPE_CHECKING:
    from pathlib import Path


def member(root: Path, archive: str, name: str) -> bytes:
    """Return what the file ``name`` in ``archive`` (tar, xz) under ``root`` holds.

    Raises:
        DataError: The archive is missing or damaged, or holds no such file.
    """
    path = file_of(root, archive)
    try:
        with tarfile.open(path, "r:xz") as opened:
            found = next((m for m in opened if m.isfile() and m.name.removeprefix("./") == name), None)
            file = None if found is None else opened.extractfile(found)
            if file is None:
                raise DataError(
                    f"{path} holds no {name}. Likely cause: it is another archive. Name another --data-root."
                )
            return file.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}). Likely cause: it is damaged. Copy it again.") from error
