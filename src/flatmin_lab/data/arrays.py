"""Arrays in NumPy's files, which may also hold pickles: those are refused."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from flatmin.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def arrays(path: Path, *names: str) -> list[np.ndarray[Any, Any]]:
    """Return arrays of a file as ``numpy.savez`` writes it.

    Args:
        path: The file.
        names: Of the arrays, in the order in which they are returned.

    Raises:
        DataError: The file is damaged, lacks one of them, or holds objects instead of numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return [stored[name] for name in names]
    except (
        OSError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path} cannot be read ({first_line}). Likely cause: it is damaged or another file. It must hold "
            f"{', '.join(names)} as arrays of numbers; objects are pickles, which can execute anything."
        ) from error
