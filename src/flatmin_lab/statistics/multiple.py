"""Several methods tested at once: Holm's correction, and how many seeds it takes.

- Holm. A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6 (1979), 65-70.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flatmin.checks import whole
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    r"""Adjust p-values for their number, stepping down from the smallest (Holm 1979).

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\{1, (m - j + 1)\, p_{(j)}\}, \qquad p_{(1)} \le \dots \le p_{(m)}.

    Rejecting where :math:`\tilde p \le \alpha` keeps the probability of any false rejection among the m at or below
    α, however the tests depend on each other. Bonferroni's :math:`m p` does the same and never rejects more.

    Args:
        p_values: One for each hypothesis.

    Returns:
        The adjusted ones, in the order given; none for none.

    Raises:
        ArgumentError: One of them is no probability.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        (0.03, 0.06, 0.06)
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ArgumentError(
            f"p_values must be probabilities between 0 and 1, got {list(p_values)!r}. Likely cause: a test that was "
            "not defined. Leave it out of the family."
        )
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, (p.size - np.arange(p.size)) * p[order]))
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return tuple(map(float, adjusted))


def min_seeds(alpha: float = 0.05, *, comparisons: int = 1) -> int:
    r"""Smallest number of paired seeds with which a two-sided sign-flip test could reject anything.

    The smallest p-value of n pairs is :math:`2 / 2^n` (Fisher 1935). Holm's first step, and Bonferroni's, compares it
    with :math:`\alpha / m`, so that at least :math:`n = \lceil 1 + \log_2 (m / \alpha) \rceil` pairs are needed. Fewer
    cannot decide, whatever they show; as many may.

    Args:
        alpha: Level of the test.
        comparisons: Number m of hypotheses that are corrected for; 1 for none.

    Returns:
        The number of pairs.

    Raises:
        ArgumentError: ``alpha`` is not between 0 and 1, or there are no comparisons.

    Example:
        >>> min_seeds(), min_seeds(comparisons=3), min_seeds(comparisons=7)
        (6, 7, 9)
    """
    if not 0 < alpha < 1:
        raise ArgumentError(f"alpha must lie between 0 and 1, got {alpha!r}; 0.05 is usual, not 5.")
    whole("comparisons", comparisons, minimum=1, hint="It is the number of hypotheses tested together.")
    n = 1
    while alpha * 2.0 ** (n - 1) < comparisons:  # scaling by a power of two is exact: no rounding at the boundary
        n += 1
    return n
