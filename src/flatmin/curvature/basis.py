"""Orthonormal vectors of many coordinates: inner products summed in float64, chunk by chunk, without wide copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_CHUNK = 2**16  # coordinates: few enough for a cache and a sum in float32, many enough to be worth a call
_CHUNK_ELSEWHERE = 2**22  # devices other than a CPU sum in trees, and pay more for a call
_PAGE = 8  # rows that lie together, so that one call serves them all
_DROP = 0.5  # a vector that keeps this share of its length in a projection keeps its digits as well


class Basis:
    """Rows of length d, orthonormal to rounding error, added block by block.

    Takes d numbers a row, in ``dtype``, and nothing else that grows with d; room is made for eight rows at a time.

    Args:
        d: Coordinates of a row.
        dtype: Type the rows are kept in, float32 or float64.
        device: Where they are kept.

    Example:
        >>> basis = Basis(3, torch.float32, torch.device("cpu"))
        >>> basis.append(torch.tensor([[1.0, 0.0, 0.0]]))
        >>> rows = torch.tensor([[4.0, 3.0, 0.0]])
        >>> basis.remove(rows)
        tensor([[4.]], dtype=torch.float64)
        >>> rows
        tensor([[0., 3., 0.]])
    """

    def __init__(self, d: int, dtype: torch.dtype, device: torch.device) -> None:
        self.d: int = d
        self.dtype: torch.dtype = dtype
        self.device: torch.device = device
        self._pages: list[Tensor] = []
        self._begins = [0]  # of the blocks that were taken in, and of the next

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._begins[-1]

    def append(self, rows: Tensor) -> None:
        """Take in ``rows`` (n, d), which are orthonormal, and orthogonal to those before."""
        for index, row in enumerate(rows, len(self)):
            if index == len(self._pages) * _PAGE:
                self._pages.append(torch.empty(_PAGE, self.d, dtype=self.dtype, device=self.device))
            self._pages[-1][index % _PAGE] = row
        self._begins.append(len(self) + len(rows))

    def remove(self, rows: Tensor) -> Tensor:
        """Project ``rows`` (n, d), in place, onto the complement of the basis; return the coefficients (m, n).

        First the last two blocks are taken out, in which most of an image under a symmetric operator lies; then all, as
        often as that shortens a row so much that rounding errors come to the fore (Daniel, Gragg, Kaufman and Stewart
        1976). So one pass usually does.

        Returns:
            Inner products with the rows of the basis, on the CPU.
        """
        total = torch.zeros(len(self), len(rows), dtype=accumulation_dtype(rows.device))
        if not len(self):
            return total
        recent = self._begins[-3:][0]
        total[recent:] += self._pass(rows, first=recent)
        before = norms(rows)
        for _ in range(3):
            total += self._pass(rows)
            after = norms(rows)
            if bool((after >= _DROP * before).all()):
                break
            before = after
        return total

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return the sums of the basis by ``coefficients`` (m, n), as rows (n, d)."""
        rows = torch.zeros(coefficients.shape[1], self.d, dtype=self.dtype, device=self.device)
        _subtract(rows, self._blocks(), -coefficients)
        return rows

    def _blocks(self, first: int = 0) -> list[Tensor]:
        """Return the rows from ``first`` on, page by page."""
        spans = ((page, range(i * _PAGE, len(self))[:_PAGE]) for i, page in enumerate(self._pages))
        return [page[max(first - span.start, 0) : len(span)] for page, span in spans if span.stop > first]

    def _pass(self, rows: Tensor, first: int = 0) -> Tensor:
        blocks = self._blocks(first)
        found = inner(blocks, rows)
        _subtract(rows, blocks, found)
        return found.cpu()


def inner(blocks: Tensor | list[Tensor], rows: Tensor) -> Tensor:
    """Return the inner products of two sets of rows, (m, n): chunks in the type of the rows, their sum in float64.

    Good to some 1e-5 of the lengths at the worst, where all terms have one sign.

    Args:
        blocks: The first set, (m, d), in one piece or several.
        rows: The second set, (n, d).
    """
    blocks = [blocks] if isinstance(blocks, torch.Tensor) else blocks
    total = torch.zeros(sum(map(len, blocks)), len(rows), dtype=accumulation_dtype(rows.device), device=rows.device)
    if len(total):
        for part in _chunks(rows):
            piece = rows[:, part].T  # stays in the cache while it meets all blocks
            total += torch.cat([block[:, part] @ piece for block in blocks])
    return total


def norms(rows: Tensor) -> Tensor:
    """Return the lengths of ``rows``, summed in float64."""
    total = torch.zeros(len(rows), dtype=accumulation_dtype(rows.device), device=rows.device)
    for part in _chunks(rows):
        total += torch.linalg.vector_norm(rows[:, part], dim=1, dtype=total.dtype).square()
    return total.sqrt()


def _subtract(rows: Tensor, blocks: list[Tensor], coefficients: Tensor) -> None:
    """Subtract ``coefficients`` (m, n), transposed, times ``blocks`` from ``rows``, in place."""
    factors = coefficients.to(rows).T.split([len(block) for block in blocks], dim=1)
    for part in _chunks(rows):
        piece = rows[:, part]
        for block, factor in zip(blocks, factors, strict=True):
            piece.addmm_(factor, block[:, part], alpha=-1.0)


def _chunks(rows: Tensor) -> Iterator[slice]:
    step = _CHUNK if rows.device.type == "cpu" else _CHUNK_ELSEWHERE
    return (slice(start, start + step) for start in range(0, rows.shape[1], step))
