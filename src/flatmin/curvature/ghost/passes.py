"""Which cotangents are pulled back: every column where there are few, else the heaviest and a sample of the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flatmin.curvature.ghost.outputs import OutputCurvature
    from flatmin.streams import Stream


_COEFFICIENTS = 2**22  # as many are made at once
_SAMPLE = 64  # passes, of which a column that carries more than two shares is not left to chance


class Limits(NamedTuple):
    """The most backward passes for one batch, in all and where every column has its own."""

    passes: int
    exact: int


class Passes:
    """The columns of a batch's output curvature, dealt out into backward passes.

    Pass k takes the k-th heaviest column of every example: examples do not mix, so one pass serves all. Columns that do
    not fit into the limit are sampled: a sum of all of them with independent random signs has, in expectation, the
    sum of their squared norms. Positive and negative columns are summed apart.

    Args:
        curvature: The columns.
        limits: How many passes there may be.

    Attributes:
        head: The number of passes that take one column each.
        exact: Whether they are all.
        sample: Passes for one sample of the rest.
    """

    def __init__(self, curvature: OutputCurvature, limits: Limits) -> None:
        self._curvature = curvature
        mass = curvature.mass.abs()
        width = min(mass.shape[1], limits.passes + 1)
        heaviest, self._order = mass.topk(width, dim=1)
        total = mass.sum(dtype=torch.float64)
        shares = heaviest.sum(0, dtype=torch.float64) / total.clamp(min=1e-300)
        needed = int((shares > torch.finfo(curvature.dtype).eps / width).sum())
        self.exact: bool = needed <= limits.exact
        # A column is worth a pass of its own if it carries more than its share of them.
        heavy = int((shares > 2 / min(limits.passes, _SAMPLE)).sum())
        self.head: int = needed if self.exact else min(heavy, max(0, limits.passes - 4))
        rest = curvature.mass.scatter(1, self._order[:, : self.head], 0.0)
        self._tails = [] if self.exact else [(s, t) for s in (1.0, -1.0) if (t := rest * s > 0).any()]
        self.sample: int = len(self._tails)

    def heads(self, together: int) -> Iterator[tuple[Tensor, list[list[Tensor]]]]:
        """Yield the passes that take one column of every example, some at a time.

        Args:
            together: How many at a time, at most.

        Yields:
            Their signs (passes, examples), and the cotangents of each.
        """
        mass, dtype = self._curvature.mass, torch.promote_types(self._curvature.dtype, torch.float32)
        together = max(1, min(together, _COEFFICIENTS // mass.numel()))
        for start in range(0, self.head, together):
            places = self._order[:, start : min(start + together, self.head)].T
            chosen = torch.zeros(len(places), *mass.shape, dtype=dtype, device=mass.device)
            cotangents = self._curvature.combine(chosen.scatter_(2, places.unsqueeze(2), 1.0))
            yield mass.T.gather(0, places).sign(), [list(c) for c in zip(*cotangents, strict=True)]

    def tail(self, stream: Stream) -> Iterator[tuple[float, list[Tensor]]]:
        """Yield the sign and the cotangents of each pass that makes up one sample of the other columns."""
        mass = self._curvature.mass
        for i, (sign, chosen) in enumerate(self._tails):
            coins = torch.randint(0, 2, mass.shape, generator=stream.generator(i, mass.device), device=mass.device)
            yield sign, self._curvature.combine((2 * coins - 1) * chosen.to(mass.dtype))
