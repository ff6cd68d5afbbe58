"""Displace and restore: the one place where weights are moved and put back.

The way back is a copy of a snapshot, never the subtraction of what was added: in bf16, where numbers near 1 lie 0.0078
apart, adding and subtracting noise drifts by percents; a copy is exact to the bit in every type. Parameters are changed
in place and never rebound, so that compiled graphs, sharded parameters and views go on seeing them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from flatmin.distributed import local, local_slice
from flatmin.perturb.flow import STAY, Displacement, Draw, Stay
from flatmin.vectors import Total, Vector, plain_total, scale_at


def realize(draw: Draw, parameters: Mapping[int, Tensor], total: Total = plain_total) -> Vector:
    """Draw the noise that ``draw`` stands for, with its scale, for every parameter (shards take their slice)."""
    noise = {i: n * scale_at(draw.scale, i) for i, n in _noise(draw, parameters)}
    return Vector(noise, total)


def _noise(draw: Draw, parameters: Mapping[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield unit noise for each parameter that ``draw`` moves, in one buffer that the next one overwrites."""
    buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    moved = {i: p for i, p in parameters.items() if scale_at(draw.scale, i) != 0}
    for position, parameter in moved.items():
        key = (parameter.device, parameter.dtype)
        if key not in buffers:
            largest = max(math.prod(p.shape) for p in moved.values() if (p.device, p.dtype) == key)
            buffers[key] = torch.empty(largest, device=key[0], dtype=key[1])
        whole = buffers[key][: math.prod(parameter.shape)].view(parameter.shape)
        draw.law.sample_(whole, draw.stream.generator(position, parameter.device))
        yield position, local_slice(whole, parameter)


class Displacer:
    """Moves parameters to w + u and back to exactly w.

    The second point of an antithetic pair is the reflection of the first through the snapshot, 2 w - (w + u): no second
    draw, no stored noise, and symmetric to the last rounding. Memory: one copy of the parameters, from the first move
    to :meth:`release`.

    Args:
        parameters: Position to parameter; whole or sharded.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> displacer = Displacer({0: w})
        >>> displacer.displace(Vector({0: torch.tensor([0.5, 0.0])}))
        >>> w.data
        tensor([1.5000, 2.0000])
        >>> displacer.release()
        >>> w.data
        tensor([1., 2.])
    """

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        self._parameters = dict(parameters)
        self._here = {i: local(p).detach() for i, p in self._parameters.items()}
        self._snapshot: list[Tensor] | None = None
        self.at: Displacement = STAY

    @torch.no_grad()
    def displace(self, displacement: Displacement) -> None:
        """Move the parameters to w + ``displacement``, from wherever they are."""
        if isinstance(displacement, Draw) and isinstance(self.at, Draw) and displacement == -self.at:
            self._reflect()
        else:
            self.restore()
            if isinstance(displacement, Stay):
                return
            if self._snapshot is None:
                self._snapshot = [tensor.clone() for tensor in self._here.values()]
            self.at = displacement  # before the first write, so that a failure half-way is undone
            self._add(displacement)
        self.at = displacement

    def _add(self, displacement: Draw | Vector) -> None:
        if isinstance(displacement, Draw):
            for i, noise in _noise(displacement, self._parameters):
                self._here[i].add_(noise, alpha=scale_at(displacement.scale, i))
            return
        tensors = displacement.tensors
        if any(tensor.layout != torch.strided for tensor in tensors.values()):
            for i, tensor in tensors.items():
                self._here[i].add_(tensor)
        elif tensors:
            torch._foreach_add_([self._here[i] for i in tensors], list(tensors.values()))

    def _reflect(self) -> None:
        here = list(self._here.values())
        torch._foreach_neg_(here)
        torch._foreach_add_(here, self._snapshot or [], alpha=2)  # an exact product, so a single rounding

    @torch.no_grad()
    def offsets(self) -> Vector:
        """Return what the parameters really moved by, after rounding: a new vector, zero at rest."""
        if self._snapshot is None:
            return Vector({})
        moved = torch._foreach_sub(list(self._here.values()), self._snapshot)
        return Vector(dict(zip(self._here, moved, strict=True)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back, bit for bit. The snapshot is kept for the next move."""
        if not isinstance(self.at, Stay) and self._snapshot is not None:
            torch._foreach_copy_(list(self._here.values()), self._snapshot)
        self.at = STAY

    def release(self) -> None:
        """Put the parameters back and drop the snapshot."""
        self.restore()
        self._snapshot = None
