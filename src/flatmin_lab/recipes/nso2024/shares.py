r"""A ratio of two paired means, with its interval.

- Fieller. Some problems in interval estimation. J. R. Stat. Soc. B 16 (1954).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from flatmin.errors import ArgumentError


@dataclass(frozen=True)
class Share:
    """A ratio of means and its interval, which has no bounds where the denominator may be zero.

    Attributes:
        share: Mean of the one over mean of the other; NaN where values are missing or not finite.
        low: Lower end.
        high: Upper end.
    """

    share: float
    low: float
    high: float

    def verdict(self, wanted: float) -> str:
        """Whether a share of at least ``wanted`` is shown by the interval."""
        if self.low >= wanted:
            return "shown"
        return "refuted" if self.high < wanted else "not decided"


def kept_share(kept: Sequence[float], whole: Sequence[float], level: float = 0.95) -> Share:
    r"""Ratio of the means of pairs :math:`(a_i, b_i)`, with Fieller's interval (1954).

    .. math:: \{\theta : |\bar a - \theta \bar b| \le t_{n-1}\, s(a - \theta b) / \sqrt n\}

    which covers the ratio with probability ``level`` for normal pairs, however near zero the denominator is. It is an
    interval where :math:`\bar b` differs from zero at that level; otherwise it has no bounds.

    Args:
        kept: The numerators, one a pair.
        whole: The denominators.
        level: Probability to cover.

    Returns:
        The ratio with its interval.

    Raises:
        ArgumentError: The two differ in length.

    Example:
        >>> kept_share([0.9, 1.1, 1.0], [1.0, 1.2, 1.1]).share
        0.909...
    """
    a, b = np.asarray(kept, dtype=float), np.asarray(whole, dtype=float)
    if a.shape != b.shape:
        raise ArgumentError(f"there are {a.size} numerators and {b.size} denominators; pairs have one of each.")
    n = a.size
    if n == 0 or not (np.isfinite(a).all() and np.isfinite(b).all()) or b.mean() == 0:
        return Share(math.nan, -math.inf, math.inf)
    share = float(a.mean() / b.mean())
    if n == 1:
        return Share(share, -math.inf, math.inf)
    t2 = float(stats.t.ppf((1 + level) / 2, n - 1)) ** 2 / n
    (aa, ab), (_, bb) = np.cov(a, b)
    # (ā - θ b̄)² = t² (s_aa - 2 θ s_ab + θ² s_bb) / n, a quadratic in θ.
    square, linear, constant = b.mean() ** 2 - t2 * bb, a.mean() * b.mean() - t2 * ab, a.mean() ** 2 - t2 * aa
    if square <= 0:
        return Share(share, -math.inf, math.inf)
    root = math.sqrt(max(0.0, linear**2 - square * constant))
    return Share(share, float((linear - root) / square), float((linear + root) / square))
