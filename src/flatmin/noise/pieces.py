"""Pieces of long tensors: drawn one after the other, each while it is in the cache of a processor's core."""

from __future__ import annotations

from collections.abc import Iterator

PIECE = 2**15 - 64
"""Elements of a piece: a multiple of 64, the numbers that :class:`~flatmin.noise.Rademacher` takes from one word. Up to
2¹⁵ elements torch computes on the thread that calls it, so that other threads can have pieces of their own."""
CHEAP_PIECE = 4 * PIECE
"""Elements of a piece of a cheap law, which one thread draws: few calls, in which torch then uses all threads."""

_LEAST = 16  # elements from which on torch draws normal numbers by the block


def bounds(number: int, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Yield where each piece of ``number`` elements starts and stops; no piece has fewer than 16 unless all have.

    Args:
        number: Elements.
        piece: Elements of a piece; the last one may have up to 15 more.

    Example:
        >>> list(bounds(2 * PIECE + 5)) == [(0, PIECE), (PIECE, 2 * PIECE + 5)]
        True
    """
    stops = range(piece, number - _LEAST + 1, piece)
    return zip([0, *stops], [*stops, number], strict=True)
