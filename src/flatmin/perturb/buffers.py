"""What several evaluations in one step do to a model's buffers, batch-norm statistics above all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from flatmin.distributed import local

BufferPolicy = Literal["first", "all", "frozen"]
BUFFER_POLICIES: tuple[str, ...] = get_args(BufferPolicy)

_UNCOUNTED = ("running_mean", "running_var")  # torch's normalisation kernels write these without counting


class Buffers:
    """Lets a step move buffers as often as the policy says, by copying them back after the other evaluations.

    In training mode batch-norm normalises by the batch, so its running statistics do not enter the gradient, and
    putting them back afterwards is exact. No module is switched, no momentum is touched, and every class with state in
    buffers is covered (batch-norm of any kind, spectral norm, queues and their pointers, ...), whether a forward pass
    writes into a buffer or puts another tensor in its place. Buffers that do not move are neither copied nor written.

    Args:
        policy: ``"first"``: buffers move in the first evaluation of a step alone, as in plain training. ``"all"``: they
            move in every one. ``"frozen"``: they do not move.
        modules: The modules whose buffers are meant.
    """

    def __init__(self, policy: str, modules: Iterable[nn.Module]) -> None:
        slots = [_Slot(m, name) for m in modules for name in m._buffers] if policy != "all" else []
        self._found = [_State.of(slot) for slot in slots]
        self._kept: list[_Kept] | None = [_Kept.of(slot) for slot in slots] if policy == "frozen" else None

    @torch.no_grad()
    def after_evaluation(self) -> None:
        """Put the buffers where the policy wants them after one more evaluation."""
        if self._kept is None:
            self._kept = [_Kept.of(state.slot) for state in self._found if state.has_moved()]
            return
        moved = [(live, kept.copy) for kept in self._kept if (live := kept.put_back()) is not None]
        if moved:
            torch._foreach_copy_([local(live) for live, _ in moved], [local(copy) for _, copy in moved])
        for kept in self._kept:
            kept.state = _State.of(kept.state.slot)


class _Slot(NamedTuple):
    """The place of one buffer."""

    module: nn.Module
    name: str


class _State(NamedTuple):
    """What changes when a buffer is replaced or written to: the tensor in its place, and torch's count of writes."""

    slot: _Slot
    tensor: Tensor | None
    writes: int

    @classmethod
    def of(cls, slot: _Slot) -> _State:
        tensor = slot.module._buffers[slot.name]
        return cls(slot, tensor, 0 if tensor is None or tensor.is_inference() else tensor._version)

    def has_moved(self) -> bool:
        if self.slot.name in _UNCOUNTED and self.slot.module.training:
            return True
        now = _State.of(self.slot)
        return now.tensor is not self.tensor or now.writes != self.writes


class _Kept:
    """A buffer as it was, and what it held."""

    def __init__(self, state: _State, copy: Tensor) -> None:
        self.state, self.copy = state, copy

    @classmethod
    def of(cls, slot: _Slot) -> _Kept:
        state = _State.of(slot)
        return cls(state, torch.empty(0) if state.tensor is None else state.tensor.detach().clone())

    def put_back(self) -> Tensor | None:
        """Put the tensor back into its place; return it if its content has to be copied back too."""
        if not self.state.has_moved():
            return None
        self.state.slot.module._buffers[self.state.slot.name] = self.state.tensor
        return self.state.tensor if self.state.has_moved() else None
