"""What was computed, in order, so that a measurement that was interrupted goes on where it stopped.

An estimator is a function of its seed and of what the operator answers. So it need not know how to save its state: with
the answers at hand it is run again from the start, arrives at the same numbers in a moment, and goes on from there.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

_LIMIT = 2**30  # bytes of answers that are kept; products with networks of millions of weights fill disks
_POSITIONS = 16  # coordinates by which a block is known again
_LEFT_OUT = {"kind": "left out"}


class Journal:
    """The answers of operators in the order in which they were asked, kept in a mapping.

    Answers are recalled as long as the questions are those of before; from the first one that differs, all are asked
    anew. Those beyond ``limit`` bytes in all are not kept, and are computed again.

    Args:
        entries: Where they are kept: a dict, or anything like one that outlives the process. Values are dicts of
            tensors, floats and texts. None keeps nothing.
        name: Prefix of its keys, ``name/00000``, ``name/00001``, ...
        watch: Told the number of columns that were answered so far, whenever it grows.
        limit: Bytes.

    Example:
        >>> entries = {}
        >>> for _ in range(2):
        ...     with Journal(entries, "trace").open() as journal:
        ...         x, cost = journal.answer("product", torch.ones(2, 1), lambda: print("computed") or torch.ones(2, 1))
        computed
        >>> journal.columns
        1
    """

    def __init__(
        self,
        entries: MutableMapping[str, Any] | None,
        name: str = "",
        *,
        watch: Callable[[int], None] | None = None,
        limit: int = _LIMIT,
    ) -> None:
        self._entries, self._name = entries, name
        self._watch, self._room = watch, limit
        self._index = 0
        self._recalling = entries is not None
        self.columns: int = 0
        self.recalled: float = 0.0

    @contextmanager
    def open(self) -> Iterator[Journal]:
        """Inside this context every counted operator asks this journal first."""
        token = _CURRENT.set(self)
        try:
            yield self
        finally:
            _CURRENT.reset(token)

    def answer(
        self, kind: str, question: Tensor, compute: Callable[[], Tensor], spent: Callable[[], float] = lambda: 0.0
    ) -> tuple[Tensor, float]:
        """Return what is asked for, from before or computed now.

        Args:
            kind: What is asked.
            question: A block of columns that the answer depends on.
            compute: Finds the answer.
            spent: Reads what was spent so far, in gradients.

        Returns:
            The answer, and the gradients that it had cost where it was recalled: they are spent, but not now.
        """
        key = f"{self._name}/{self._index:05d}"
        self._index += 1
        found = self._recall(key, kind, question)
        if found is None:
            before = spent()
            result, cost = compute(), 0.0
            self._keep(key, kind, question, result, spent() - before)
        else:
            result, cost = found["answer"].to(question.device, copy=True), float(found["gradients"])
            self.recalled += cost
        self._count(question)
        return result, cost

    def forget(self) -> None:
        """Drop what is kept under its name."""
        if self._entries is not None:
            for key in [key for key in self._entries if key.startswith(f"{self._name}/")]:
                del self._entries[key]

    def _recall(self, key: str, kind: str, question: Tensor) -> dict[str, Any] | None:
        if not self._recalling or self._entries is None:
            return None
        found: Any = self._entries.get(key)
        if found == _LEFT_OUT:  # a hole, which is computed again
            return None
        if not _answers(found, kind, question):
            self._recalling = False
            return None
        self._room -= _bytes(found["answer"])
        return found

    def _keep(self, key: str, kind: str, question: Tensor, answer: Tensor, gradients: float) -> None:
        if self._entries is None:
            return
        if _bytes(answer) > self._room:
            self._entries[key] = dict(_LEFT_OUT)
            return
        self._room -= _bytes(answer)
        self._entries[key] = {
            "kind": kind,
            "sketch": _sketch(question),
            "answer": answer.detach().to("cpu", copy=True),  # which may be its operator's own, and change
            "gradients": gradients,
        }

    def _count(self, question: Tensor) -> None:
        self.columns += question.shape[1]
        if self._watch is not None:
            self._watch(self.columns)


_CURRENT: ContextVar[Journal | None] = ContextVar("journal", default=None)


def current() -> Journal | None:
    """Return the journal that is open, if one is."""
    return _CURRENT.get()


def _answers(found: Any, kind: str, question: Tensor) -> bool:
    """Tell whether ``found`` is the answer to a question, and not to another one or something else altogether."""
    if not isinstance(found, dict) or found.get("kind") != kind:
        return False
    kept, answer, sketch = found.get("sketch"), found.get("answer"), _sketch(question)
    if not (isinstance(kept, Tensor) and isinstance(answer, Tensor) and isinstance(found.get("gradients"), float)):
        return False
    if kept.shape != sketch.shape or answer.shape not in (question.shape, question.shape[1:]):
        return False
    return torch.allclose(kept.to(sketch), sketch, rtol=1e-4, atol=1e-5 * float(sketch.abs().max()))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _sketch(block: Tensor) -> Tensor:
    """Return some coordinates of every column, on the CPU."""
    rows = torch.linspace(0, block.shape[0] - 1, min(_POSITIONS, block.shape[0])).long()
    return block.detach()[rows.to(block.device)].to("cpu", torch.float32)
