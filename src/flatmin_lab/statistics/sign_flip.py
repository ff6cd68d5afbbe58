"""Exact sign-flip tests of paired differences.

- Fisher. The Design of Experiments (1935), section 21: the sign-flip (randomisation) test of paired differences.
- Phipson and Smyth. Permutation P-values should never be zero. Stat. Appl. Genet. Mol. Biol. 9 (2010).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from flatmin.errors import ArgumentError
from flatmin_lab.statistics.intervals import as_vector

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_EXACT = 20
"""Largest number of non-zero differences whose sign patterns are all enumerated."""

_TIE = 1e-9  # relative to the sum of magnitudes: far above rounding, far below one test image


@dataclass(frozen=True)
class SignFlip:
    """Outcome of a two-sided sign-flip test of paired differences.

    Attributes:
        p: The p-value; exact, or estimated where ``kind`` says so.
        num_seeds: Number of pairs.
        reachable: Smallest p-value that differences of these magnitudes could give, whatever their signs.
        kind: ``"exact"`` (all sign patterns) or ``"monte-carlo"`` (random patterns, more than ``MAX_EXACT`` pairs).
        stderr: Standard error of ``p`` from drawing patterns; zero when exact.
    """

    p: float
    num_seeds: int
    reachable: float
    kind: Literal["exact", "monte-carlo"] = "exact"
    stderr: float = 0.0

    def can_reach(self, alpha: float) -> bool:
        """Whether these pairs could have given p ≤ ``alpha`` at all; if not, there are not enough of them."""
        return self.reachable <= alpha


def sign_flip_test(differences: Sequence[float], *, draws: int = 99_999, seed: int = 0) -> SignFlip:
    r"""Two-sided sign-flip test that paired differences are symmetric about zero (Fisher 1935).

    Under the null hypothesis each difference is as likely to have either sign, so that

    .. math:: p = 2^{-n} \, \#\{ s \in \{-1, 1\}^n : |\textstyle\sum_i s_i d_i| \ge |\sum_i d_i| \},

    all :math:`2^n` patterns for up to ``MAX_EXACT`` non-zero differences. Sums that differ by rounding alone count as
    equal. Zero differences change no sum and cancel from p. The smallest p is :math:`2 / 2^m` with m non-zero
    differences: five pairs never reach 0.05, six do.

    With more pairs, ``draws`` random patterns give :math:`p = (1 + \#) / (1 + draws)`, a valid p-value (Phipson and
    Smyth 2010), and ``kind`` and ``stderr`` of the result say so.

    Args:
        differences: One difference a pair; the pairs are independent.
        draws: Number of random patterns where not all are enumerated.
        seed: Seed of the random patterns.

    Returns:
        The p-value, the number of pairs, and the smallest p-value within their reach.

    Raises:
        ArgumentError: There are no differences, one of them is not finite, or ``draws`` is below 1.

    Example:
        >>> sign_flip_test([1.0, 2.0, 3.0])
        SignFlip(p=0.25, num_seeds=3, reachable=0.25, kind='exact', stderr=0.0)
        >>> sign_flip_test([1.0, 2.0, 3.0]).can_reach(0.05)
        False
    """
    d = as_vector(differences, "differences")
    if not np.isfinite(d).all():
        raise ArgumentError(
            f"differences must be finite, got {d[~np.isfinite(d)][0]}: a run behind it probably diverged. "
            "Report that run instead of testing the others."
        )
    if draws < 1:
        raise ArgumentError(f"draws must be at least 1, got {draws!r}.")
    nonzero = d[np.abs(d) > _TIE * np.abs(d).max()]
    if nonzero.size == 0:
        return SignFlip(1.0, d.size, 1.0)
    threshold = abs(nonzero.sum()) - _TIE * np.abs(nonzero).sum()
    smallest = 2.0 / 2.0**nonzero.size
    if nonzero.size <= MAX_EXACT:
        return SignFlip(float(np.mean(np.abs(_all_signed_sums(nonzero)) >= threshold)), d.size, smallest)
    extreme = np.abs(_random_signed_sums(nonzero, draws, seed)) >= threshold
    p = float((1 + extreme.sum()) / (1 + draws))
    return SignFlip(p, d.size, max(smallest, 1 / (1 + draws)), "monte-carlo", math.sqrt(p * (1 - p) / draws))


def _all_signed_sums(d: np.ndarray) -> np.ndarray:
    """Sums under the patterns that keep the first sign; the other half are their negatives, equal in magnitude."""
    sums = d[:1]
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _random_signed_sums(d: np.ndarray, draws: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    sums = np.zeros(draws)
    for value in d:  # one difference at a time: memory stays at one vector of draws
        sums += value * generator.choice((-1.0, 1.0), size=draws)
    return sums
