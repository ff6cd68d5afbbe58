"""What a session keeps: the graphs of the first batches, as many as a budget of memory allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from flatmin.curvature.memory import Held, available_memory, held_by

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import torch
    from torch import Tensor

    from flatmin.curvature.graph import Root


_SHARE = 0.25  # of the memory that is free when a session begins


class Product(Protocol):
    """One batch, ready to multiply vectors: whatever graph that needs, it holds.

    Attributes:
        cost: What a product costs, in gradients of the batch.
    """

    cost: float

    @property
    def roots(self) -> Sequence[Root]:
        """The tensors it holds and the ends of the graph it holds, by which its memory is measured."""
        ...

    def __call__(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        """Return the product, one tensor or None (zero) a parameter. Not called again if ``keep`` is False."""
        ...


class Kept(NamedTuple):
    """A batch's product and its number of examples."""

    product: Product
    size: int


class Session:
    """The graphs of the first batches, at one place in weight space.

    Args:
        budget: Bytes that they may hold.

    Attributes:
        used: Bytes that they hold.
        kept: The graphs, in the order of the data.
        place: Where the weights were when they were built.
        complete: Whether every batch of the data is kept.
        recomputes: Whether a product runs parts of the model again (activation checkpointing).
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.clear()

    @classmethod
    def within(cls, memory: int | None, device: torch.device) -> Session:
        """Return a session of ``memory`` bytes; None takes a share of what is free now."""
        return cls(int(_SHARE * available_memory(device)) if memory is None else memory)

    def clear(self) -> None:
        """Drop everything."""
        self.used: int = 0
        self.kept: list[Kept] = []
        self.place: Hashable = None
        self.complete: bool = False
        self.recomputes: bool = False
        self._full = False
        self._held = Held()

    def move_to(self, place: Hashable) -> None:
        """Drop everything if the weights moved: graphs of other weights are of no use."""
        if place != self.place:
            self.clear()
            self.place = place

    def take(self, product: Product, size: int) -> bool:
        """Keep a batch's graph if it fits and all before it did; tell whether it was."""
        if not self._full:
            held = held_by(product.roots)
            together = self._held | held
            if together.bytes <= self.budget:
                self._held, self.used = together, together.bytes
                self.recomputes |= held.is_packed
                self.kept.append(Kept(product, size))
                return True
            self._full = True
        return False

    def all_seen(self) -> None:
        """Note that the data were read to their end."""
        self.complete = not self._full
