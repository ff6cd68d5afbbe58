"""Weights that are away from where they belong, and that can come back for a while without autograd noticing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatmin.distributed import local, reshard
from flatmin.perturb import Displacer, Draw, Snapshots
from flatmin.perturb.gradients import current


class Excursion:
    """Weights at a displaced point, from when this is made to :meth:`end`.

    Args:
        parameters: Position to parameter.
        moves: The displacements that lead to the point; it is the last of them.
        sharded: The FSDP2 modules around the parameters.
        snapshots: Keeps the memory of the copy of the weights for the next excursion.
    """

    def __init__(
        self,
        parameters: Mapping[int, Tensor],
        moves: Sequence[Draw],
        sharded: Sequence[nn.Module] = (),
        snapshots: Snapshots | None = None,
    ) -> None:
        self.parameters = parameters
        self.point: Draw = moves[-1]
        self._moves, self._sharded = moves, sharded
        # It is not told of the sharded modules: in the middle of a backward pass they must not be resharded.
        self._displacer = Displacer(parameters, snapshots=snapshots)
        try:
            self._go()
        except BaseException:
            self.end()
            raise

    def _go(self) -> None:
        self._is_away = True
        reshard(self._sharded)
        for move in self._moves:
            self._displacer.displace(move)

    def pause(self) -> None:
        """Put the weights back for a while."""
        if self._is_away:
            with self._unnoticed():
                self._is_away = False
                reshard(self._sharded)
                self._displacer.restore()

    def go_on(self) -> None:
        """Go to the point again after a pause, bit for bit the same one."""
        if not self._is_away:
            with self._unnoticed():
                self._go()

    @contextmanager
    def _unnoticed(self) -> Iterator[None]:
        """Hide what is written in here from autograd, which refuses weights that were written to.

        What it has saved for a backward pass holds again by the time of that pass, since the way back is exact.
        """
        with torch.no_grad():
            written = tuple(local(parameter).detach() for parameter in self.parameters.values())
        with torch.autograd._unsafe_preserve_version_counter(written):
            yield

    def end(self) -> None:
        """Put the weights back for good."""
        reshard(self._sharded)
        self._displacer.release()

    def alignments(self) -> dict[int, Tensor]:
        """Return the inner products of the gradients that are there with the displacement, by position."""
        return self._displacer.alignments({i: local(g) for i, g in current(self.parameters).items()})
