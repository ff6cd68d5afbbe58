"""A folder as a mapping: what is put in is on the disk at once, whole, and is there for the next process."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import torch

from flatmin_lab.files import explained, write_whole

_SUFFIX = ".pt"


class Shelf(MutableMapping[str, Any]):
    """Names to tensors, numbers, texts, and lists and dicts of them; a slash in a name makes a folder.

    What cannot be read is as if it were not there.

    Args:
        folder: Where; it is made when something is put in.
        note: Told in one line about a file that cannot be read.

    Example:
        >>> import tempfile
        >>> shelf = Shelf(Path(tempfile.mkdtemp()))
        >>> shelf["a/b"] = {"x": torch.ones(2)}
        >>> list(shelf), shelf["a/b"]
        (['a/b'], {'x': tensor([1., 1.])})
    """

    def __init__(self, folder: Path, note: Callable[[str], object] = lambda _: None) -> None:
        self.folder = folder
        self._note = note

    def __getitem__(self, key: str) -> Any:
        path = self._path(key)
        with explained(path, "read"):
            if not path.is_file():
                raise KeyError(key)
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
                self._note(f"{path} is made again: it cannot be read.")
                raise KeyError(key) from error

    def __setitem__(self, key: str, value: Any) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        write_whole(self._path(key), buffer.getvalue())

    def __delitem__(self, key: str) -> None:
        path = self._path(key)
        with explained(path, "write"):
            try:
                path.unlink()
            except FileNotFoundError:
                raise KeyError(key) from None
            if path.parent != self.folder and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def __iter__(self) -> Iterator[str]:
        found = sorted(self.folder.rglob(f"*{_SUFFIX}"))
        return (path.relative_to(self.folder).with_suffix("").as_posix() for path in found)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._path(key).is_file()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"
