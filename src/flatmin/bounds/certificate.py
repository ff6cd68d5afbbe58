"""A certificate: a bound with its terms, its assumptions and its confidence."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from flatmin.bounds.monte_carlo import PosteriorRisk

_NOTHING = 0.995
_DIGITS = 4


@dataclass(frozen=True, kw_only=True, repr=False)
class Certificate:
    """An upper bound on the expected loss on new data, which holds with probability ``1 - delta``.

    Attributes:
        risk: The bound: on new examples of the same kind, networks drawn from the posterior (for a single-draw
            certificate: the network drawn) have at most this expected loss.
        loss: The loss it bounds, in [0, 1].
        bound: Name of the inequality.
        empirical: The mean loss over the n examples, with its Monte-Carlo account.
        kl: KL(Q‖P) in nats, or for a single draw the logarithm of dQ/dP there, which stands in its place.
        n: The number of examples.
        delta: One minus the confidence, everything included.
        delta_bound: What of it belongs to the inequality, after the union over what was searched.
        num_searched: Posteriors that were tried; each has its share of delta.
        union: What the inequality pays, in nats, for what was searched: the logarithm of the number of statements that
            share its part of delta (standard deviations of the prior, and the points of a grid inside the inequality).
        sigma: Standard deviation of the posterior: a number, or one for each pattern of names.
        prior_sigma: That of the prior.
        tried: The bound for every posterior that was tried.
        single_draw: Whether it is about one network and not the average over the posterior.
        assumptions: What must be true for it to hold, in sentences.
    """

    risk: float
    loss: str
    bound: str
    empirical: PosteriorRisk
    kl: float
    n: int
    delta: float
    delta_bound: float
    num_searched: int
    union: float
    sigma: object
    prior_sigma: object
    tried: tuple[float, ...]
    single_draw: bool
    assumptions: tuple[str, ...]

    @property
    def vacuous(self) -> bool:
        """Whether it says nothing: no loss exceeds 1, and to two digits the bound is no less."""
        return self.risk >= _NOTHING

    @property
    def terms(self) -> dict[str, float]:
        """What it is made of: losses in units of the loss, entropies in nats for each example."""
        return {
            "empirical risk": self.empirical.value,
            "Monte-Carlo slack": self.empirical.upper - self.empirical.value,
            "KL / n": self.kl / self.n,
            "union / n": self.union / self.n,
            "complexity slack": self.risk - self.empirical.upper,
        }

    def __repr__(self) -> str:
        """Show the bound in one line."""
        holds = "vacuous" if self.vacuous else f"risk <= {rounded_up(self.risk)}"
        return f"Certificate({holds} with probability {confidence(self.delta)}, {self.loss}, n={self.n})"

    def __str__(self) -> str:
        """Say it in a paragraph."""
        whom = "the network drawn" if self.single_draw else "networks drawn from the posterior"
        head = (
            f"With probability {confidence(self.delta)}, {whom} have on new examples an expected loss ({self.loss}) of "
            f"at most {rounded_up(self.risk)}."
            if not self.vacuous
            else f"Vacuous: the bound is {rounded_up(min(self.risk, 1.0))} for the loss ({self.loss}) of {whom}; KL is "
            "too large for n."
        )
        searched = f", of {self.num_searched} posteriors searched" if self.num_searched > 1 else ""
        draws = "1 draw" if self.single_draw else f"{self.empirical.num_draws} draws"
        union = f", and {self.union:.3g} nats for what was searched" if self.union else ""
        body = (
            f"Inequality: {self.bound}; sigma {_sigma(self.sigma)}{searched}. Empirical risk "
            f"{self.empirical.value:.4g} over {self.n} examples and {draws}, at most "
            f"{rounded_up(self.empirical.upper)}; "
            f"{'ln dQ/dP' if self.single_draw else 'KL'} {self.kl:.5g} nats{union}. It holds if: "
        )
        return textwrap.fill(head + " " + body + " ".join(self.assumptions), width=100)


def rounded_up(bound: float, *, decimals: int | None = None) -> str:
    """Return a bound in four digits, or with so many ``decimals``, rounded upwards: what is printed must hold too.

    Example:
        >>> rounded_up(0.123412), rounded_up(1e-6), rounded_up(0.012301, decimals=4)
        ('0.1235', '0.000001', '0.0124')
    """
    exact = Decimal(repr(float(bound)))
    if decimals is not None:
        return str(exact.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_CEILING))
    return f"{Context(prec=_DIGITS, rounding=ROUND_CEILING).create_decimal(exact):f}"


def confidence(delta: float) -> str:
    """Return 1 - δ in decimal digits, rounded downwards.

    Example:
        >>> confidence(0.05), confidence(0.0123456), confidence(1e-9)
        ('0.95', '0.9876', '0.9999')
    """
    return f"{Context(prec=_DIGITS, rounding=ROUND_FLOOR).subtract(Decimal(1), Decimal(repr(float(delta)))):f}"


def _sigma(sigma: object) -> str:
    return f"{sigma:.4g}" if isinstance(sigma, float) else str(sigma)
