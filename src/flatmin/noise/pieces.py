"""Pieces of long tensors: drawn one after the other, each while it is in the cache of a processor's core."""

from __future__ import annotations

from collections.abc import Iterator

PIECE = 2**15 - 64
"""Elements of a piece: a multiple of 64, the numbers that :class:`~flatmin.noise.Rademacher` takes from one word. Up to
2¹⁵ elements torch computes on the thread that calls it, so that other threads can have pieces of their own."""

_LEAST = 16  # elements from which on torch draws normal numbers by the block


def bounds(number: int) -> Iterator[tuple[int, int]]:
    """Yield where each piece of ``number`` elements starts and stops; no piece has fewer than 16 unless all have.

    Example:
        >>> list(bounds(2 * PIECE + 5)) == [(0, PIECE), (PIECE, 2 * PIECE + 5)]
        True
    """
    stops = range(PIECE, number - _LEAST + 1, PIECE)
    return zip([0, *stops], [*stops, number], strict=True)
