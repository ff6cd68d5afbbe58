"""Finished results on disk: which folders hold any, and what they hold. What cannot be read is named and left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flatmin.errors import FlatminError
from flatmin_lab.compare import assemble
from flatmin_lab.errors import StoreError
from flatmin_lab.files import explained
from flatmin_lab.measure import RECORD as MEASUREMENT
from flatmin_lab.reproduction import RECORD as REPRODUCTION
from flatmin_lab.reproduction import ReproductionRecord
from flatmin_lab.spec import Comparison
from flatmin_lab.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

COMPARISON, WHOLE_COMPARISON, BEGUN = "compare.json", "comparison.json", "recipe.json"
_MARKS = (REPRODUCTION, COMPARISON, WHOLE_COMPARISON, MEASUREMENT, BEGUN)
_DEEPEST = 4  # folders within the one that was named

_Kind = TypeVar("_Kind", Comparison, ReproductionRecord)
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Reproduced:
    """A reproduction with its figures.

    Attributes:
        record: What was found.
        figures: Name to the PNG.
    """

    record: ReproductionRecord
    figures: dict[str, bytes]


@dataclass
class Stored:
    """What was read.

    Attributes:
        reproductions: Folder and content.
        comparisons: Folder and content.
        skipped: One sentence for each folder that could not be read, which begins with its name.
    """

    reproductions: list[tuple[Path, Reproduced]] = field(default_factory=list)
    comparisons: list[tuple[Path, Comparison]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def places(folder: Path) -> Iterator[Path]:
    """Yield the folders in and below one that hold results, in the order of their names; nothing within those.

    Args:
        folder: Where to look. Links are not followed.
    """
    yield from _places(folder, _DEEPEST)


def _places(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / mark).is_file() for mark in _MARKS):
        yield folder
    elif depth and folder.is_dir():
        with explained(folder, "read"):
            inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != ".")
        for each in inside:
            yield from _places(each, depth - 1)


def read(folders: Iterable[Path], note: Callable[[str], object] = lambda _: None) -> Stored:
    """Read everything that folders hold.

    Args:
        folders: Of comparisons, of reproductions, or of several of these.
        note: Told in one line about everything unusual.

    Returns:
        What could be read, each folder once, and what could not.
    """
    found, seen = Stored(), set()
    for folder in folders:
        try:
            inside = list(places(folder))
        except StoreError as error:
            found.skipped.append(f"{folder}: {error}")
            continue
        if not inside:
            found.skipped.append(f"{folder}: there is no comparison and no reproduction in it.")
        for place in inside:
            if place.resolve() not in seen:
                seen.add(place.resolve())
                _read_into(found, place, note)
    return found


def _read_into(found: Stored, place: Path, note: Callable[[str], object]) -> None:
    try:
        if (place / REPRODUCTION).is_file():
            found.reproductions.append((place, read_reproduction(place)))
        elif (place / COMPARISON).is_file() or (place / WHOLE_COMPARISON).is_file():
            found.comparisons.append((place, read_comparison(place, note)))
        elif (place / MEASUREMENT).is_file():
            found.skipped.append(f"{place}: it holds a measurement, which is reported alone: flatmin report {place}")
        else:
            found.skipped.append(f"{place}: it was begun and not finished: there is no {REPRODUCTION} in it.")
    except FlatminError as error:
        found.skipped.append(f"{place}: {error}")


def read_comparison(folder: Path, note: Callable[[str], object] = lambda _: None) -> Comparison:
    """Read a comparison: put together from its runs, or whole where the runs were not kept.

    Raises:
        StoreError: It is not finished or cannot be read.
    """
    if (folder / COMPARISON).is_file():
        with Store(folder, note, new=False) as store:
            return assemble(store.header().asked, store)
    return _parsed(Comparison, folder / WHOLE_COMPARISON)


def read_reproduction(folder: Path) -> Reproduced:
    """Read a reproduction and its figures.

    Raises:
        StoreError: The record or a figure is damaged or missing, or lies in another folder.
    """
    record = _parsed(ReproductionRecord, folder / REPRODUCTION)
    figures = {}
    for what, file in record.files.items():
        if Path(file).name != file:
            raise StoreError(
                f"its record names {file!r}, which is not a file of this folder. It was edited or damaged."
            )
        if file.endswith(".png"):
            with explained(folder / file, "read"):
                figures[what.removesuffix(" (figure)")] = png = (folder / file).read_bytes()
            if not png.startswith(_PNG):
                raise StoreError(f"{file} is not a PNG. It was damaged; make the reproduction again.")
    return Reproduced(record, figures)


def _parsed(kind: type[_Kind], path: Path) -> _Kind:
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        return kind.model_validate_json(content)
    except ValueError as error:  # pydantic's own is one
        why = " ".join(str(error).split())[:200]
        raise StoreError(
            f"{path.name} cannot be read ({why}). It is damaged or of another version of flatmin."
        ) from error
