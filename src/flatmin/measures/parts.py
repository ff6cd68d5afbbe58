"""The parts of a measurement: done once, kept, and known again."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

from flatmin.curvature.batch import tensors_in
from flatmin.curvature.journal import Journal
from flatmin.curvature.layerwise import LayerwiseResult
from flatmin.curvature.memory import strided_parts
from flatmin.curvature.results import EigenPairs, TraceEstimate
from flatmin.curvature.spectrum import SpectralDensity
from flatmin.distributed import local
from flatmin.errors import DataError
from flatmin.measures.gap import GapEstimate
from flatmin.measures.measurement import KINDS, Spent
from flatmin.measures.records import from_record, to_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from torch import Tensor

    from flatmin.curvature.operators import Hessian

_RESULTS: dict[str, type] = {
    "layers": LayerwiseResult,
    "trace": TraceEstimate,
    "eigenvalues": EigenPairs,
    "density": SpectralDensity,
    "gap": GapEstimate,
}


class Progress(Protocol):
    """Told how far a part of a measurement is."""

    def __call__(self, part: str, done: int, total: int | None) -> object:
        """Take note that ``done`` of ``total`` steps are done; None where nobody knows how many there will be."""
        ...


class Work:
    """Does parts of a measurement that are not done yet, and keeps them.

    Args:
        H: The Hessian that is measured.
        store: Where parts are kept; None keeps none.
        progress: Told how far each part is.

    Attributes:
        loss: f(W).
        spent: What each part took.
    """

    def __init__(self, H: Hessian, store: MutableMapping[str, Any] | None, progress: Progress | None) -> None:
        self._H, self._store, self._progress = H, store, progress
        self.spent: dict[str, Spent] = {}
        with H.risk.observed():
            H.risk.check_weights()
            self.loss: float = H.risk.mean()
        self._place = "" if store is None else _digest(H, self.loss)

    def part(
        self,
        name: str,
        compute: Callable[..., Any],
        settings: Mapping[str, Any],
        *further: object,
        gradients: float = 0.0,
    ) -> Any:
        """Return a part from the store, or do it and keep it.

        Args:
            name: What it is called, a field of :class:`~flatmin.measures.measurement.Measurement`.
            compute: Does it, given ``settings`` by name.
            settings: What it depends on, beside the weights and the data.
            further: What it depends on as well.
            gradients: What it spends without the Hessian's account knowing.
        """
        key = f"{name}-{self._key(name, settings, further)}"
        if (stored := self._stored(name, key)) is not None:
            result, self.spent[name] = stored
            self._report(name, 1, 1)
            return result
        journal = Journal(self._store, f"products-{key}", watch=lambda columns: self._report(name, columns, None))
        before, begin = self._H.gradients, time.perf_counter()
        self._report(name, 0, None)
        with journal.open():
            result = compute(**settings)
        spent = self._H.gradients - before + journal.recalled + gradients
        self.spent[name] = Spent(spent, time.perf_counter() - begin)
        if self._store is not None:
            self._store[key] = {"result": to_record(result), "spent": list(self.spent[name])}
            journal.forget()
        self._report(name, max(journal.columns, 1), max(journal.columns, 1))
        return result

    def _stored(self, name: str, key: str) -> tuple[Any, Spent] | None:
        """Return a part that is kept, and what it took; None where there is none, or something that is no such part."""
        record: Any = None if self._store is None else self._store.get(key)
        try:
            result, spent = from_record(record["result"], KINDS), Spent(*record["spent"])
        except (AttributeError, DataError, IndexError, KeyError, TypeError, ValueError):
            return None
        return (result, spent) if type(result) is _RESULTS[name] else None

    def _report(self, part: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            self._progress(part, done, total)

    def _key(self, name: str, settings: Mapping[str, Any], further: tuple[object, ...]) -> str:
        text = json.dumps([name, dict(settings), further, self._place], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(H: Hessian, loss: float) -> str:
    """Return what tells one measurement from another: loss, trainable parameters, weights, buffers and data."""
    digest = hashlib.sha256(f"{loss!r} {list(H.layout.shapes)}".encode())
    for name, tensor in H.risk.model.state_dict(keep_vars=True).items():
        _add(digest, name, tensor)
    with H.risk.aside():
        for batch in H.risk.read():
            for tensor in tensors_in(batch.content):
                _add(digest, f"batch {batch.index}", tensor)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    for part in strided_parts(local(tensor.detach())):
        values = part.contiguous().cpu()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
