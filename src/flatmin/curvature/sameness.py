"""Every pass over the data must see the same data: their number and their losses are held against earlier passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


class Sameness:
    """What earlier passes over the data have found.

    Args:
        tolerance: By how much mean losses at the same weights may differ, relative to 1 + their size.

    Attributes:
        num_examples: The number of examples, once the data were read; None before.

    Example:
        >>> data = Sameness(1e-8)
        >>> data.count(5)
        >>> data.compare("here", [1.0, 4.0], skip=0)
        >>> data.compare("here", [4.0], skip=1)
        >>> data.num_examples
        5
    """

    def __init__(self, tolerance: float) -> None:
        self.num_examples: int | None = None
        self._tolerance = tolerance
        self._last: tuple[Hashable, Sequence[float]] | None = None

    def count(self, count: int) -> None:
        """Hold the number of examples of a pass against earlier ones.

        Raises:
            DataError: There is none, or another number than last time.
        """
        if count == 0:
            before = "" if self.num_examples is None else f", but {self.num_examples} examples the first time"
            raise DataError(
                f"batches gave no batch{before}. Likely cause: an empty split, drop_last=True with a batch size above "
                "the number of examples, or an iterator that ran dry. Pass a list or a DataLoader that is not empty."
            )
        if self.num_examples not in (None, count):
            raise DataError(
                f"the data changed: {self.num_examples} examples in the first pass and {count} in this one. All passes "
                "must see the same data; fix the sampler, or pass list(loader)."
            )
        self.num_examples = count

    def compare(self, place: Hashable, totals: Sequence[float], skip: int) -> None:
        """Hold the losses of the batches from ``skip`` on against those of an earlier pass at the same weights.

        Args:
            place: Where the weights are.
            totals: For each batch, its size times its loss.
            skip: Batches that were left out at the beginning.

        Raises:
            DataError: The mean loss differs.
        """
        if self._last is not None and self._last[0] == place:
            count = self.num_examples or 1
            before, now = sum(self._last[1][skip:]) / count, sum(totals) / count
            if abs(now - before) > self._tolerance * (1.0 + abs(before)):
                raise DataError(
                    f"the data changed: at the same weights the mean loss was {before:.6g} in an earlier pass and is "
                    f"{now:.6g} in this one{' (without the batches whose graphs are kept)' if skip else ''}. Likely "
                    "cause: augmentation or sampling by generators of their own. Pass list(loader) to measure on one "
                    "fixed version of the data."
                )
        if not skip:
            self._last = (place, totals)
