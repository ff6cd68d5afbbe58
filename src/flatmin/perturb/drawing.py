"""Noise for many parameters: drawn into small buffers, on several threads where the law allows, and handed on."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from flatmin.distributed import is_sharded, local_slice, norms_over, real_shape
from flatmin.noise.pieces import CHEAP_PIECE, PIECE, bounds
from flatmin.perturb.flow import Draw
from flatmin.vectors import value_for

Receive = Callable[[int, slice | None, Tensor], None]
"""Told a position, a part of that parameter's elements in order (None: the local shard), and its noise, but for the
scale, in a buffer that is written again afterwards."""

_WORTH_THREADS = 2**18  # elements: a millisecond of drawing, several times what it takes to start a few threads


@torch.no_grad()
def draw_each(
    draw: Draw, parameters: Mapping[int, Tensor], receive: Receive, *, in_pieces: Container[int] = ()
) -> None:
    """Draw the noise of each parameter that ``draw`` moves, and hand it to ``receive``.

    Each parameter has a generator of its own, so that the numbers do not depend on who draws them.

    Args:
        draw: The noise.
        parameters: Position to parameter.
        receive: Takes the noise; from several threads at once for parameters in pieces.
        in_pieces: Parameters on a CPU whose noise may come piece by piece, if the law draws the same numbers so.
    """
    moved = {i: p for i, p in parameters.items() if value_for(draw.scale, i) != 0}
    relative = {i: p for i, p in moved.items() if value_for(draw.relative_to, i) != "absolute"}
    pieced = {}
    if getattr(draw.law, "is_sequential", False):
        pieced = {i: p for i, p in moved.items() if i in in_pieces and i not in relative and not is_sharded(p)}
    _draw_whole(draw, {i: p for i, p in moved.items() if i not in pieced}, _unit_lengths(relative, draw), receive)
    largest_first = sorted(pieced, key=lambda i: pieced[i].numel(), reverse=True)
    work = partial(_draw_in_pieces, draw, pieced, receive)
    threads = 1 if getattr(draw.law, "is_cheap", False) else min(torch.get_num_threads(), len(pieced))
    if threads < 2 or sum(p.numel() for p in pieced.values()) < _WORTH_THREADS:
        for position in largest_first:
            work(position)
        return
    with ThreadPoolExecutor(threads) as pool:  # for this draw alone: idle threads would be in the way of a fork
        for _ in pool.map(work, largest_first):
            pass  # an exception comes out here, once all threads have stopped


@torch.no_grad()  # of each thread, which does not know of the caller's
def _draw_in_pieces(draw: Draw, parameters: Mapping[int, Tensor], receive: Receive, position: int) -> None:
    parameter = parameters[position]
    number = real_shape(parameter).numel()
    generator = draw.stream.generator(position, parameter.device)
    piece = CHEAP_PIECE if getattr(draw.law, "is_cheap", False) else PIECE
    buffer = torch.empty(min(number, 2 * piece), dtype=parameter.dtype.to_real(), device=parameter.device)
    for start, stop in bounds(number, piece):
        receive(position, slice(start, stop), draw.law.sample_(buffer[: stop - start], generator))


def _draw_whole(draw: Draw, parameters: Mapping[int, Tensor], units: Mapping[int, Tensor], receive: Receive) -> None:
    buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    for position, parameter in parameters.items():
        key = (parameter.device, parameter.dtype.to_real())
        if key not in buffers:
            alike = (p for p in parameters.values() if (p.device, p.dtype.to_real()) == key)
            buffers[key] = torch.empty(max(real_shape(p).numel() for p in alike), device=key[0], dtype=key[1])
        shape = real_shape(parameter)
        whole = buffers[key][: shape.numel()].view(shape)
        draw.law.sample_(whole, draw.stream.generator(position, parameter.device))
        slice_ = local_slice(whole, parameter)
        receive(position, None, slice_.mul_(units[position]) if position in units else slice_)


def _unit_lengths(parameters: Mapping[int, Tensor], draw: Draw) -> dict[int, Tensor]:
    """Return the norm of each parameter, or those of its filters, shaped to multiply its local shard."""
    is_filtered = {i: value_for(draw.relative_to, i) == "filter" and p.dim() > 1 for i, p in parameters.items()}
    return {i: norms_over(p, first=1 if is_filtered[i] else 0) for i, p in parameters.items()}
