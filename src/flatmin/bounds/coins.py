"""Coins: how far two of them differ, and what the errors in so many examples say of the rate behind them.

Where a number is found by bisection, the upper end of the last interval is returned.
"""

from __future__ import annotations

import math

import numpy as np

from flatmin.checks import nonnegative, whole
from flatmin.errors import ArgumentError

_ROUNDING = 1e-12  # relative slack for the rounding of logarithms
_EPS = 2.0**-52
_UNIT = (
    "These bounds are for losses in [0, 1]. Take the 0-1 error, or cross-entropy clamped and divided by its largest "
    "value."
)


def binary_kl(q: float, p: float) -> float:
    r"""Return the relative entropy of two coins, :math:`q\ln\frac qp + (1-q)\ln\frac{1-q}{1-p}`, in nats.

    Example:
        >>> round(binary_kl(0.5, 0.25), 6), binary_kl(0.0, 0.0), binary_kl(0.5, 1.0)
        (0.143841, 0.0, inf)
    """
    probability("q", q)
    probability("p", p)
    return _binary_kl(float(q), float(p))


def _binary_kl(q: float, p: float) -> float:
    """Return kl(q‖p) with an error of some roundings of |p - q|, and not of 1: where the coins are close it is tiny."""
    first = 0.0 if q == 0 else math.inf if p == 0 else q * _log(q / p, q - p, p)
    second = 0.0 if q == 1 else math.inf if p == 1 else (1 - q) * _log((1 - q) / (1 - p), p - q, 1 - p)
    return max(0.0, first + second)


def _log(ratio: float, difference: float, base: float) -> float:
    """Return the logarithm of ``ratio`` = 1 + ``difference`` / ``base``."""
    return math.log1p(difference / base) if 0.5 < ratio < 2 else math.log(ratio)


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
    if c == math.inf:
        return 1.0
    c = nonnegative("c", c, hint="It is a relative entropy.")
    if c == 0:
        return float(q)
    q = low = float(q)
    high = 1.0
    while low < (middle := (low + high) / 2) < high:
        if _binary_kl(q, middle) > c + _ROUNDING * c + 8 * _EPS * (middle - q):
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
    k, slack = np.arange(errors + 1), 1e-9 + 8 * _EPS * math.lgamma(n + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k.tolist()])
    low, high = errors / n, 1.0
    while low < (middle := (low + high) / 2) < high:
        terms = logs + k * math.log(middle) + (n - k) * math.log1p(-middle)
        largest = float(terms.max())
        if largest + math.log(float(np.exp(terms - largest).sum())) >= math.log(delta) - slack:
            low = middle
        else:
            high = middle
    return high


def probability(name: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1.

    Raises:
        ArgumentError: It does not.
        ArgumentTypeError: It is no number.
    """
    if nonnegative(name, value, hint=_UNIT) > 1:
        raise ArgumentError(f"{name} is {value}, but it must lie between 0 and 1. {_UNIT}")
    return value


def check_delta(delta: float) -> None:
    """Raise ArgumentError unless ``delta`` lies between 0 and 1, both excluded; ArgumentTypeError for no number."""
    if not 0 < nonnegative("delta", delta, hint="It is one minus the confidence, such as 0.05 for 95 %.") < 1:
        raise ArgumentError(
            f"delta is {delta}, but it must lie between 0 and 1, such as 0.05 for a confidence of 95 %. For delta = 0 "
            "nothing holds."
        )
