"""Results as plain records and back: with their tensors for a disk, with lists for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from flatmin.errors import DataError

_KIND = "kind"


def to_record(value: Any, *, json: bool = False) -> Any:
    """Return ``value`` as dicts, lists, numbers, texts and tensors.

    Args:
        value: A result, or anything inside one.
        json: Write tensors as lists and numbers that are not finite as texts, and leave out eigenvectors and the
            estimates behind the rows of layers.

    Returns:
        For a dataclass a dict of its fields with its name under ``kind``.

    Example:
        >>> from flatmin.curvature.results import Estimate
        >>> to_record(Estimate(value=1.0, stderr=math.nan), json=True)
        {'kind': 'Estimate', 'value': 1.0, 'stderr': 'nan', 'samples': None}
    """
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in fields(value) if not (json and f.name in _LEFT_OUT)}
        return {_KIND: type(value).__name__, **{name: to_record(item, json=json) for name, item in named.items()}}
    if isinstance(value, Tensor):
        return to_record(value.tolist(), json=True) if json else value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: to_record(item, json=json) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_record(item, json=json) for item in value]
    if json and isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


_LEFT_OUT = ("vectors", "layout", "estimate")


def from_record(record: Any, kinds: Mapping[str, type]) -> Any:
    """Return what :func:`to_record` was given; large vectors that were left out come back with no rows.

    Args:
        record: What it returned.
        kinds: The classes that may occur, by name.

    Raises:
        DataError: It names another class, lacks a field, or has something else in one.
    """
    if isinstance(record, Mapping) and _KIND in record:
        kind = kinds.get(record[_KIND])
        if kind is None:
            raise DataError(
                f"the record is one of {record[_KIND]!r}, which is not known here. Known are {', '.join(kinds)}; was "
                "it written by another version of flatmin?"
            )
        named = {f.name: _field(record[f.name], str(f.type), kinds) for f in fields(kind) if f.name in record}
        wrong = [f.name for f in fields(kind) if f.name in named and not _fits(named[f.name], str(f.type), kinds)]
        if wrong:
            raise DataError(
                f"the record of a {record[_KIND]} has {named[wrong[0]]!r} as its {wrong[0]}. Was it edited, or written "
                "by another version of flatmin?"
            )
        if "vectors" in {f.name for f in fields(kind)}:
            named.setdefault("vectors", torch.zeros(0, len(named.get("values", ()))))
        try:
            return kind(**named)
        except TypeError as error:
            raise DataError(
                f"the record of a {record[_KIND]} is incomplete ({error}). Was it edited, or written by another "
                "version of flatmin?"
            ) from error
    if isinstance(record, Tensor):
        return record.clone()  # whatever is done to it, the record stays
    if isinstance(record, Mapping):
        return {key: from_record(item, kinds) for key, item in record.items()}
    return [from_record(item, kinds) for item in record] if isinstance(record, list) else record


def _field(value: Any, annotation: str, kinds: Mapping[str, type]) -> Any:
    """Return the value of a field that is declared as ``annotation``."""
    if "Tensor" in annotation and isinstance(value, Mapping):
        return {key: _field(item, annotation, kinds) for key, item in value.items()}
    if "Tensor" in annotation and isinstance(value, list):
        return torch.tensor(_numbers(value), dtype=torch.float64)
    if "Size" in annotation and isinstance(value, Mapping):
        return {key: torch.Size(item) for key, item in value.items()}
    if "float" in annotation:
        value = _numbers(value)
    value = from_record(value, kinds)
    return tuple(value) if annotation.startswith("tuple") and isinstance(value, list) else value


_PLAIN = {"float": (int, float), "int": int, "str": str, "bool": bool, "None": type(None), "Tensor": Tensor}


def _fits(value: Any, annotation: str, kinds: Mapping[str, type]) -> bool:
    """Tell whether a field that is declared as ``annotation`` may hold ``value``."""
    if annotation.startswith("tuple["):
        item = annotation.removeprefix("tuple[").split(",")[0]
        return isinstance(value, tuple) and all(_fits(each, item, kinds) for each in value)
    if annotation.startswith("Mapping["):
        return isinstance(value, Mapping)
    known = {**_PLAIN, **kinds}
    return annotation == "Any" or any(isinstance(value, known.get(kind, ())) for kind in annotation.split(" | "))


def _numbers(value: Any) -> Any:
    """Return ``value`` with the texts that stand for NaN and infinity as the numbers they are."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
