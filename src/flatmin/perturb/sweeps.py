"""Passes over the weights in pieces that stay in a processor's cache, so that memory is read once for several steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flatmin.vectors import PIECE, Vector, accumulation_dtype, is_plain

Move = Literal["stay", "reflect", "restore"]
"""What can be done with parameters while a pass has them, and their snapshot, in the cache."""

_CHUNK = 2**20  # elements that come at once elsewhere than on a CPU, where each call costs more than it computes


class Group(NamedTuple):
    """What a foreach call takes at once: pieces of each of the lists, and of which places in the lists they are."""

    places: list[int]
    pieces: tuple[list[Tensor], ...]


def in_step(*lists: Sequence[Tensor]) -> Iterator[Group]:
    """Go through lists of equally shaped tensors in step, large ones on a CPU in pieces and small ones together.

    Args:
        lists: Lists of one length; tensors at one place have one shape.
    """
    group, places, size = list[tuple[Tensor, ...]](), list[int](), 0
    piece = PIECE * torch.get_num_threads()
    for place, tensors in enumerate(zip(*lists, strict=True)):
        is_cached = tensors[0].device.type == "cpu"
        for part in _split(tensors, piece) if is_cached else (tensors,):
            number = part[0].numel()
            if group and size + number > (piece if is_cached else _CHUNK):
                yield Group(places, tuple(map(list, zip(*group, strict=True))))
                group, places, size = [], [], 0
            group.append(part)
            places.append(place)
            size += number
    if group:
        yield Group(places, tuple(map(list, zip(*group, strict=True))))


def _split(tensors: tuple[Tensor, ...], piece: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield pieces of tensors of one shape, in the order of their memory where that of all is the same."""
    number = tensors[0].numel()
    if number <= piece or not all(t.layout == torch.strided and t.stride() == tensors[0].stride() for t in tensors):
        yield tensors
        return
    if not (tensors[0].is_contiguous() or tensors[0].is_contiguous(memory_format=_channels_last(tensors[0]))):
        yield tensors
        return
    flat = [tensor.as_strided((number,), (1,)) for tensor in tensors]
    for start in range(0, number, piece):
        yield tuple(tensor[start : start + piece] for tensor in flat)


def _channels_last(tensor: Tensor) -> torch.memory_format:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(tensor.dim(), torch.contiguous_format)


def chunks(tensors: Mapping[int, Tensor], limit: int) -> Iterator[list[int]]:
    """Yield positions in groups of at most ``limit`` elements, or of one tensor."""
    chunk, size = list[int](), 0
    for position, tensor in tensors.items():
        if chunk and size + tensor.numel() > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(position)
        size += tensor.numel()
    if chunk:
        yield chunk


def reflect_(here: list[Tensor], before: list[Tensor]) -> None:
    """Move ``here`` to its mirror image about ``before``."""
    torch._foreach_neg_(here)
    torch._foreach_add_(here, before, alpha=2)  # an exact product, so a single rounding


def move_(here: list[Tensor], before: list[Tensor], move: Move) -> None:
    """Do ``move`` with ``here``, whose snapshot is ``before``."""
    if move == "reflect":
        reflect_(here, before)
    elif move == "restore":
        torch._foreach_copy_(here, before)


def alignments(
    here: Mapping[int, Tensor], before: Mapping[int, Tensor], gradients: Mapping[int, Tensor], *, then: Move
) -> dict[int, Tensor]:
    """Return the inner products of ``gradients`` with ``here - before``, and do ``then`` in the same pass.

    Args:
        here: Position to parameter.
        before: Their snapshot.
        gradients: Position to gradient, of some of them.
        then: What to do with all of ``here``.
    """
    order, parts, scratch = list(gradients), dict[int, list[Tensor]](), _Scratch()
    for places, (now, start, gradient) in in_step(*([of[i] for i in order] for of in (here, before, gradients))):
        for place, part in zip(places, scratch.alignments(now, start, gradient), strict=True):
            parts.setdefault(order[place], []).append(part)
        move_(now, start, then)
    others = [i for i in here if i not in gradients] if then != "stay" else []
    for _, (now, start) in in_step([here[i] for i in others], [before[i] for i in others]):
        move_(now, start, then)
    return {i: torch.stack(some).sum(dtype=accumulation_dtype(some[0].device)) for i, some in parts.items()}


class _Scratch:
    """Memory for one piece at a time: new memory for each would be handed over by the system page by page."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def alignments(self, now: list[Tensor], start: list[Tensor], gradients: list[Tensor]) -> Sequence[Tensor]:
        """Return the inner products of ``gradients`` with ``now - start``."""
        if not all(map(is_plain, (*now, *start, *gradients))):
            moved = Vector(dict(enumerate(torch._foreach_sub(now, start))))
            return list(moved.inner_parts(Vector(dict(enumerate(gradients)))).values())
        return [
            torch.dot(torch.sub(a.view(-1), b.view(-1), out=self._room(a)), g.view(-1))
            for a, b, g in zip(now, start, gradients, strict=True)
        ]

    def _room(self, like: Tensor) -> Tensor:
        if self._memory.dtype != like.dtype or len(self._memory) < like.numel():
            self._memory = like.new_empty(like.numel())
        return self._memory[: like.numel()]


class Snapshots:
    """Memory for copies of tensors, kept from one use to the next on a CPU, where new memory costs more than a copy.

    An accelerator's allocator keeps what it is given back, and may lend it to others meanwhile.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of ``tensors``."""
        free, self._free = self._free, []
        fits = len(free) == len(tensors) and all(map(_is_alike, free, tensors))
        copies = free if fits else [torch.empty_like(tensor) for tensor in tensors]
        if copies:
            torch._foreach_copy_(copies, list(tensors))
        return copies

    def give_back(self, copies: list[Tensor]) -> None:
        """Keep the memory of copies that are not needed any more."""
        self._free = copies if all(copy.device.type == "cpu" for copy in copies) else []


def _is_alike(copy: Tensor, tensor: Tensor) -> bool:
    if copy.device != tensor.device or copy.dtype != tensor.dtype:
        return False
    return copy.shape == tensor.shape and copy.stride() == tensor.stride()
