"""What several evaluations in one step do to a model's buffers, batch-norm statistics above all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from flatmin.distributed import local

BufferPolicy = Literal["first", "all", "frozen"]
BUFFER_POLICIES: tuple[str, ...] = get_args(BufferPolicy)


class Buffers:
    """Lets a step move buffers as often as the policy says, by copying them back after the other evaluations.

    In training mode batch-norm normalises by the batch, so its running statistics do not enter the gradient, and
    putting them back afterwards is exact. No module is switched, no momentum is touched, and every class with state in
    buffers is covered (batch-norm of any kind, spectral norm, queues and their pointers, ...), whether a forward pass
    writes into a buffer or puts another tensor in its place.

    Args:
        policy: ``"first"``: buffers move in the first evaluation of a step alone, as in plain training. ``"all"``: they
            move in every one. ``"frozen"``: they do not move.
        modules: The modules whose buffers are meant.
    """

    def __init__(self, policy: str, modules: Iterable[nn.Module]) -> None:
        slots = [_Slot(m, n) for m in modules for n, _ in m._buffers.items()] if policy != "all" else []
        self._found = [_State.of(slot) for slot in slots]
        self._kept: list[_Kept] | None = [_Kept.of(found) for found in self._found] if policy == "frozen" else None

    @torch.no_grad()
    def after_evaluation(self) -> None:
        """Put the buffers where the policy wants them after one more evaluation."""
        if self._kept is None:
            self._kept = [_Kept.of(found) for found in self._found if found.has_moved()]
            return
        moved = [(live, kept.copy) for kept in self._kept if (live := kept.put_back()) is not None]
        if moved:
            # .data: what has not changed is written too, and a graph that uses it need not be told.
            torch._foreach_copy_([local(live).data for live, _ in moved], [local(copy) for _, copy in moved])


class _Slot(NamedTuple):
    """The place of one buffer."""

    module: nn.Module
    name: str


class _State(NamedTuple):
    """What tells that a buffer was replaced or written to: the tensor in its place, and torch's count of writes.

    Not every write is counted: neither those of torch's normalisation kernels nor those through ``.data``. So numbers
    of modules in training mode count as written at every evaluation, if they can be written at all.
    """

    slot: _Slot
    tensor: Tensor | None
    writes: int
    is_uncounted: bool

    @classmethod
    def of(cls, slot: _Slot) -> _State:
        tensor = getattr(slot.module, slot.name, None)
        if tensor is None or tensor.is_inference():
            return cls(slot, tensor, 0, is_uncounted=False)
        may_move = tensor.is_floating_point() or tensor.is_complex() or tensor.dim() == 0
        is_expanded = 0 in tensor.stride() and tensor.numel() > 1
        return cls(slot, tensor, tensor._version, is_uncounted=slot.module.training and may_move and not is_expanded)

    def has_moved(self) -> bool:
        now = _State.of(self.slot)
        return self.is_uncounted or now.tensor is not self.tensor or now.writes != self.writes


class _Kept:
    """A buffer as it was, and what it held."""

    def __init__(self, state: _State, copy: Tensor) -> None:
        self.state, self.copy = state, copy

    @classmethod
    def of(cls, found: _State) -> _Kept:
        """Keep the buffer as it is now; whether its writes are counted was settled when the step began."""
        state = _State.of(found.slot)._replace(is_uncounted=found.is_uncounted)
        return cls(state, torch.empty(0) if state.tensor is None else state.tensor.detach().clone())

    def put_back(self) -> Tensor | None:
        """Put the tensor back into its place; return it if its content has to be copied back too."""
        if not self.state.has_moved():
            return None
        slot, tensor = self.state.slot, self.state.tensor
        if getattr(slot.module, slot.name, None) is not tensor:
            setattr(slot.module, slot.name, tensor)
        if tensor is None or not self.state.has_moved():
            return None
        self.state = self.state._replace(writes=tensor._version)
        return tensor
