"""Displace and restore: the one place where weights are moved and put back.

The way back is a copy of a snapshot, never the subtraction of what was added: in bf16, where numbers near 1 lie 0.0078
apart, adding and subtracting noise drifts by percents; a copy is exact to the bit in every type. Parameters are changed
in place and never rebound, so that compiled graphs, sharded parameters and views go on seeing them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from flatmin.distributed import local, reshard, sharded_modules
from flatmin.perturb.drawing import draw_each
from flatmin.perturb.flow import STAY, Displacement, Draw, Stay
from flatmin.perturb.sweeps import Move, Snapshots, alignments, in_step, reflect_
from flatmin.vectors import Scale, Total, Vector, plain_total, value_for


def realize(draw: Draw, parameters: Mapping[int, Tensor], total: Total = plain_total) -> Vector:
    """Draw the noise that ``draw`` stands for, with its scale, for every parameter (shards take their slice).

    Args:
        draw: The noise.
        parameters: Position to parameter, standing at the weights themselves.
        total: Adds the partial sums of the vector that is returned.
    """
    noise: dict[int, Tensor] = {}

    def keep(position: int, _: slice | None, drawn: Tensor) -> None:
        noise[position] = drawn * value_for(draw.scale, position)

    draw_each(draw, parameters, keep)
    return Vector(noise, total)


class Displacer:
    """Moves parameters to w + u and back to exactly w.

    The second point of an antithetic pair is the reflection of the first through the snapshot, 2 w - (w + u): no second
    draw, no stored noise, and symmetric to the last rounding. Memory: one copy of the parameters, from the first move
    to :meth:`release`.

    Args:
        parameters: Position to parameter; whole or sharded.
        modules: The modules around them: sharded ones are made to hold their shards before each move.
        unseen: Whether torch's count of writes is put back with the weights, on release: graphs that were kept at the
            weights stay of use, being at the same bits again. Not where a graph at displaced weights may be kept.
        snapshots: Keeps the memory of the copy for whoever displaces these weights next.

    Attributes:
        at: Where the parameters stand, if that has a symbol; None at a displacement by a vector, which is not kept.

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

    def __init__(
        self,
        parameters: Mapping[int, Tensor],
        modules: Iterable[nn.Module] = (),
        *,
        unseen: bool = False,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._parameters = dict(parameters)
        self._snapshots = snapshots or Snapshots()
        self._unseen, self._writes = unseen, ExitStack()
        self._sharded = sharded_modules(modules)
        self._here = self._locals()
        self._snapshot: list[Tensor] | None = None
        self.at: Stay | Draw | None = STAY

    @torch.no_grad()
    def displace(self, displacement: Displacement) -> None:
        """Move the parameters to w + ``displacement``, from wherever they are."""
        if isinstance(displacement, Draw) and isinstance(self.at, Draw):
            if displacement == self.at:
                return
            if displacement == -self.at:
                self.reflect()
                return
        self.restore()
        if isinstance(displacement, Stay):
            return
        self._prepare()
        if self._snapshot is None:
            self._snapshot = self._snapshots.take(list(self._here.values()))
            if self._unseen:
                counts = torch.autograd._unsafe_preserve_version_counter(tuple(self._here.values()))
                self._writes.enter_context(counts)
        # Before the first write, so that a failure half-way is undone.
        self.at = displacement if isinstance(displacement, Draw) else None
        self._add(displacement)

    def _locals(self) -> dict[int, Tensor]:
        """Return the memory that the next forward pass reads: what a sharded module holds once it is resharded."""
        reshard(self._sharded)
        return {i: local(p).detach() for i, p in self._parameters.items()}

    def _prepare(self) -> None:
        self._here = self._locals()  # anew: a forward pass may have given a parameter other memory (.data = ...)
        torch.clear_autocast_cache()  # autocast keeps its copies of weights, and a write in place does not tell it

    def _add(self, displacement: Draw | Vector) -> None:
        if isinstance(displacement, Draw):
            cached = {i for i, here in self._here.items() if here.device.type == "cpu" and here.is_contiguous()}
            draw_each(displacement, self._parameters, partial(self._add_noise, displacement.scale), in_pieces=cached)
            return
        displacement.add_to_(self._here)

    def _add_noise(self, scale: Scale, position: int, part: slice | None, noise: Tensor) -> None:
        here = self._here[position] if part is None else self._here[position].view(-1)[part]
        here.add_(noise, alpha=value_for(scale, position))

    @torch.no_grad()
    def reflect(self) -> None:
        """Move the parameters from w + u to w - u, whatever u is; nowhere if they are at rest."""
        if isinstance(self.at, Stay) or self._snapshot is None:
            return
        self._prepare()
        for _, (here, before) in in_step(list(self._here.values()), self._snapshot):
            reflect_(here, before)
        self.at = None if self.at is None else -self.at

    @torch.no_grad()
    def alignments(self, gradients: Mapping[int, Tensor], *, then: Move = "stay") -> dict[int, Tensor]:
        """Return, for each gradient, its inner product with what its parameter really moved by (0-dim, double).

        About a million elements are copied at a time, whatever the size of the model.

        Args:
            gradients: Position to gradient.
            then: Where to move the parameters in the same pass over them.
        """
        if self._snapshot is None:
            return {}
        self._prepare()
        found = alignments(self._here, dict(zip(self._here, self._snapshot, strict=True)), gradients, then=then)
        if then == "restore":
            self.at = STAY
        elif then == "reflect" and isinstance(self.at, Draw):
            self.at = -self.at
        return found

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back, bit for bit. The snapshot is kept for the next move."""
        if not isinstance(self.at, Stay) and self._snapshot is not None:
            self._prepare()
            torch._foreach_copy_(list(self._here.values()), self._snapshot)
        self.at = STAY

    def release(self) -> None:
        """Put the parameters back and drop the snapshot."""
        self.restore()
        self._writes.close()
        if self._snapshot is not None:
            self._snapshots.give_back(self._snapshot)
        self._snapshot = None
