"""Random vectors as columns, drawn by their number: more of them never change the first ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flatmin.noise import Rademacher

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.counted import Counted
    from flatmin.noise import Law
    from flatmin.streams import Stream

_BLOCK_ELEMENTS = 2**26  # numbers in one block of vectors
_RADEMACHER = Rademacher()


def columns(A: Counted, stream: Stream, first: int, count: int, law: Law = _RADEMACHER) -> Tensor:
    """Return the draws ``first``, ..., ``first + count - 1`` of ``stream`` for an operator, shape (d, count).

    Example:
        >>> from flatmin.curvature.counted import Counted
        >>> from flatmin.streams import Stream
        >>> columns(Counted(torch.eye(4)), Stream(0), 0, 3).abs().sum()
        tensor(12.)
    """
    rows = torch.empty(count, A.d, dtype=torch.promote_types(A.dtype, torch.float32), device=A.device)
    for j, row in enumerate(rows, first):
        law.sample_(row, stream.generator(j, row.device))
    return rows.T


def block_width(d: int) -> int:
    """Return how many vectors of d coordinates are multiplied at once: 16, or what fits into 2²⁶ numbers."""
    return min(16, max(1, _BLOCK_ELEMENTS // d))
