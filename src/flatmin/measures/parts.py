"""The parts of a measurement: done once, kept, and known again."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

from flatmin.curvature.journal import Journal
from flatmin.distributed import local
from flatmin.measures.measurement import KINDS, Spent
from flatmin.measures.records import from_record, to_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from flatmin.curvature.operators import Hessian


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
            self.loss = H.risk.mean()
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
            name: What it is called.
            compute: Does it, given ``settings`` by name.
            settings: What it depends on, beside the weights and the data.
            further: What it depends on as well.
            gradients: What it spends without the Hessian's account knowing.
        """
        key = f"{name}-{self._key(name, settings, further)}"
        stored = None if self._store is None else self._store.get(key)
        if stored is not None:
            self.spent[name] = Spent(*stored["spent"])
            self._report(name, 1, 1)
            return from_record(stored["result"], KINDS)
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

    def _report(self, part: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            self._progress(part, done, total)

    def _key(self, name: str, settings: Mapping[str, Any], further: tuple[object, ...]) -> str:
        text = json.dumps([name, dict(settings), further, self._place], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(H: Hessian, loss: float) -> str:
    """Return what tells one measurement from another: the weights, the buffers, the loss and the number of examples."""
    digest = hashlib.sha256(f"{loss!r} {H.risk.num_examples}".encode())
    for name, tensor in H.risk.model.state_dict(keep_vars=True).items():
        values = local(tensor.detach()).contiguous().cpu()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
