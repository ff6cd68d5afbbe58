"""Coins: how far two of them differ, and what the errors in so many examples say of the rate behind them.

Where a number is found by bisection, the upper end of the last interval is returned.
"""

from __future__ import annotations

import math

import numpy as np

from flatmin.checks import nonnegative, whole
from flatmin.errors import ArgumentError

_ROUNDING = 1e-12  # relative slack for the rounding of logarithms


def binary_kl(q: float, p: float) -> float:
    r"""Return the relative entropy of two coins, :math:`q\ln\frac qp + (1-q)\ln\frac{1-q}{1-p}`, in nats.

    Example:
        >>> round(binary_kl(0.5, 0.25), 6), binary_kl(0.0, 0.0), binary_kl(0.5, 1.0)
        (0.143841, 0.0, inf)
    """
    probability("q", q)
    probability("p", p)
    first = 0.0 if q == 0 else math.inf if p == 0 else q * math.log(q / p)
    second = 0.0 if q == 1 else math.inf if p == 1 else (1 - q) * (math.log1p(-q) - math.log1p(-p))
    return max(0.0, first + second)


def kl_inverse(q: float, c: float) -> float:
    r"""Return :math:`\sup\{p : \mathrm{kl}(q\|p) \le c\}`, rounded up.

    Args:
        q: A mean loss, between 0 and 1.
        c: How far the coins may differ, in nats.

    Example:
        >>> round(kl_inverse(0.05, 0.05), 6), round(kl_inverse(0.0, 0.1), 6), round(kl_inverse(0.3, 0.01), 6)
        (0.149062, 0.095163, 0.367162)
    """
    probability("q", q)
    c = nonnegative("c", c, hint="It is a relative entropy.") if math.isfinite(c) else c
    if math.isnan(c):
        raise ArgumentError("c is NaN, but a relative entropy is needed. Look where it came from.")
    if c == math.inf:
        return 1.0
    c += _ROUNDING * c
    low, high = q, 1.0
    while low < (middle := (low + high) / 2) < high:
        if binary_kl(q, middle) > c:
            high = middle
        else:
            low = middle
    return high


def binomial(errors: int, n: int, delta: float) -> float:
    r"""The hold-out bound: the largest risk at which so few errors in n are not less likely than δ, rounded up.

    .. math:: \sup\{p : \Pr[\mathrm{Bin}(n, p) \le \text{errors}] \ge \delta\}

    (Clopper and Pearson 1934; Langford 2005.) For one classifier and examples that it has never met.

    Args:
        errors: Misclassified examples.
        n: Examples.
        delta: One minus the confidence.

    Example:
        >>> round(binomial(0, 100, 0.05), 6) == round(1 - 0.05 ** 0.01, 6)
        True
    """
    whole("n", n, minimum=1, hint="It counts examples.")
    whole("errors", errors, minimum=0, hint="It counts misclassified examples.")
    check_delta(delta)
    if errors >= n:
        if errors > n:
            raise ArgumentError(f"errors is {errors} of n = {n} examples, which cannot be. Were they swapped?")
        return 1.0
    k = np.arange(errors + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k.tolist()])
    low, high = errors / n, 1.0
    while low < (middle := (low + high) / 2) < high:
        terms = logs + k * math.log(middle) + (n - k) * math.log1p(-middle)
        largest = float(terms.max())
        if largest + math.log(float(np.exp(terms - largest).sum())) >= math.log(delta) - 1e-9:
            low = middle
        else:
            high = middle
    return high


def probability(name: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1.

    Raises:
        ArgumentError: It does not.
    """
    if not 0 <= value <= 1:
        raise ArgumentError(
            f"{name} is {value}, but it must lie between 0 and 1: these bounds are for losses in [0, 1]. Take the 0-1 "
            "error, or cross-entropy clamped and divided by its largest value."
        )
    return value


def check_delta(delta: float) -> None:
    """Raise ArgumentError unless ``delta`` lies between 0 and 1, both excluded."""
    if not 0 < delta < 1:
        raise ArgumentError(
            f"delta is {delta}, but it must lie between 0 and 1, such as 0.05 for a confidence of 95 %. For delta = 0 "
            "nothing holds."
        )
