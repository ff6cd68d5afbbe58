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
_DROP = 0.5  # a vector that keeps this share of its length in a projection keeps its digits as well


class Basis:
    """Rows of length d, orthonormal to rounding error, added block by block.

    Takes d numbers a row, in ``dtype``, and nothing else that grows with d.

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
        self.d, self.dtype, self.device = d, dtype, device
        self._blocks: list[Tensor] = []

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(map(len, self._blocks))

    def append(self, rows: Tensor) -> None:
        """Take in ``rows`` (n, d), which are orthonormal, and orthogonal to those before."""
        self._blocks.append(rows)

    def remove(self, rows: Tensor) -> Tensor:
        """Project ``rows`` (n, d), in place, onto the complement of the basis; return the coefficients (m, n).

        First the last two blocks are taken out, in which most of an image under a symmetric operator lies; then all, as
        often as that shortens a row so much that rounding errors come to the fore (Daniel, Gragg, Kaufman and Stewart
        1976). So one pass usually does.

        Returns:
            Inner products with the rows of the basis, on the CPU.
        """
        sizes = [len(block) for block in self._blocks]
        total = torch.zeros(sum(sizes), len(rows), dtype=accumulation_dtype(rows.device))
        recent = sum(sizes[-2:])
        total[len(total) - recent :] += self._pass(self._blocks[-2:], rows)
        before = norms(rows)
        for _ in range(3):
            total += self._pass(self._blocks, rows)
            after = norms(rows)
            if bool((after >= _DROP * before).all()):
                break
            before = after
        return total

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return the sums of the basis by ``coefficients`` (m, n), as rows (n, d)."""
        rows = torch.zeros(coefficients.shape[1], self.d, dtype=self.dtype, device=self.device)
        for block, part in zip(self._blocks, coefficients.split([len(b) for b in self._blocks]), strict=True):
            _subtract(rows, block, -part)
        return rows

    @staticmethod
    def _pass(blocks: list[Tensor], rows: Tensor) -> Tensor:
        parts = [inner(block, rows) for block in blocks]
        for block, part in zip(blocks, parts, strict=True):
            _subtract(rows, block, part)
        return torch.cat(parts).cpu() if parts else torch.zeros(0, len(rows), dtype=accumulation_dtype(rows.device))


def inner(block: Tensor, rows: Tensor) -> Tensor:
    """Return the inner products of two sets of rows, (m, n): chunks in the type of the rows, their sum in float64.

    Good to some 1e-5 of the lengths at the worst, where all terms have one sign.
    """
    total = torch.zeros(len(block), len(rows), dtype=accumulation_dtype(rows.device), device=rows.device)
    for part in _chunks(rows):
        total += block[:, part] @ rows[:, part].T
    return total


def norms(rows: Tensor) -> Tensor:
    """Return the lengths of ``rows``, summed in float64."""
    total = torch.zeros(len(rows), dtype=accumulation_dtype(rows.device), device=rows.device)
    for part in _chunks(rows):
        total += torch.linalg.vector_norm(rows[:, part], dim=1, dtype=total.dtype).square()
    return total.sqrt()


def _subtract(rows: Tensor, block: Tensor, coefficients: Tensor) -> None:
    """Subtract ``coefficients`` transposed times ``block`` from ``rows``, in place."""
    factors = coefficients.to(rows).T
    for part in _chunks(rows):
        rows[:, part].addmm_(factors, block[:, part], alpha=-1.0)


def _chunks(rows: Tensor) -> Iterator[slice]:
    step = _CHUNK if rows.device.type == "cpu" else _CHUNK_ELSEWHERE
    return (slice(start, start + step) for start in range(0, rows.shape[1], step))
