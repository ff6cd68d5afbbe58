"""The sigma of the PAC-Bayes bound: that it is the minimiser of what it claims to minimise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import optimal_sigma

cases = given(
    r=st.floats(0.01, 100.0),
    alpha=st.floats(0.1, 1e5),
    n=st.integers(10, 10**6),
    C=st.floats(0.1, 20.0),
    beta=st.floats(0.05, 0.95),
)


def price(sigma, r, n, C, beta):
    """KL(N(W, sigma² I) ‖ N(W0, sigma² I)) = r² / 2 sigma² in the PAC-Bayes bound (8), without the term in delta."""
    return C * (r**2 / (2 * sigma**2)) / (2 * beta * (1 - beta) * n)


def terms_of_27(sigma, r, alpha, n, C, beta):
    """Equation (27): what bounds the loss of the weights themselves."""
    return (1 - beta) * alpha / (2 * beta) * sigma**2 + price(sigma, r, n, C, beta)


def noisy(sigma, r, alpha, n, C, beta):
    """Equation (8) with the noisy training loss to second order: what bounds the loss of the noisy network."""
    return alpha * sigma**2 / 2 / beta + price(sigma, r, n, C, beta)


def lowest(f):
    """The minimiser of a function that is unimodal in log sigma, by golden section."""
    low, high, ratio = math.log(1e-9), math.log(1e9), (math.sqrt(5) - 1) / 2
    for _ in range(150):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if f(math.exp(a)) < f(math.exp(b)) else (a, high)
    return math.exp((low + high) / 2)


@cases
def test_minimises_the_terms_of_27(r, alpha, n, C, beta):
    sigma = optimal_sigma(r, alpha, n, loss_bound=C, beta=beta)
    assert sigma == pytest.approx(lowest(lambda s: terms_of_27(s, r, alpha, n, C, beta)), rel=1e-5)
    expected = math.sqrt(C * alpha * r**2 / (2 * n)) / beta
    assert terms_of_27(sigma, r, alpha, n, C, beta) == pytest.approx(expected, rel=1e-9)


@cases
def test_the_bound_for_the_noisy_network_asks_for_less(r, alpha, n, C, beta):
    """By the factor (1 - beta)^(1/4): its sigma⁴ = C r² / (2 (1 - beta) n alpha)."""
    sigma = (1 - beta) ** 0.25 * optimal_sigma(r, alpha, n, loss_bound=C, beta=beta)
    assert sigma == pytest.approx(lowest(lambda s: noisy(s, r, alpha, n, C, beta)), rel=1e-5)
    assert sigma**4 == pytest.approx(C * r**2 / (2 * (1 - beta) * n * alpha), rel=1e-9)


def test_the_default_beta_makes_distance_cheapest():
    assert lowest(lambda b: price(1.0, 1.0, 1, 1.0, b) if 0 < b < 1 else b + 1e12) == pytest.approx(0.5, rel=1e-5)
    assert optimal_sigma(1.0, 1.0, 1, loss_bound=1.0) == optimal_sigma(1.0, 1.0, 1, loss_bound=1.0, beta=0.5)


def test_how_it_scales():
    """sigma goes as r^(1/2), alpha^(-1/4), n^(-1/4), C^(1/4)."""
    one = optimal_sigma(1.0, 1.0, 1, loss_bound=1.0)
    assert optimal_sigma(16.0, 1.0, 1, loss_bound=1.0) == pytest.approx(4 * one)
    assert optimal_sigma(1.0, 16.0, 1, loss_bound=1.0) == pytest.approx(one / 2)
    assert optimal_sigma(1.0, 1.0, 16, loss_bound=1.0) == pytest.approx(one / 2)
    assert optimal_sigma(1.0, 1.0, 1, loss_bound=16.0) == pytest.approx(2 * one)
    assert optimal_sigma(0.0, 1.0, 1, loss_bound=1.0) == 0.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"distance": -1.0}, ArgumentError, "distance is -1.0.*where training started"),
        ({"trace": 0.0}, ArgumentError, "trace is 0.*no noise is too much"),
        ({"trace": math.nan}, ArgumentError, "trace is nan"),
        ({"num_examples": 0}, ArgumentError, "num_examples is 0.*training examples"),
        ({"num_examples": 1.5}, ArgumentTypeError, "no whole number"),
        ({"loss_bound": 0}, ArgumentError, "loss_bound is 0.*no example exceeds"),
        ({"beta": 0.0}, ArgumentError, "beta is 0"),
        ({"beta": 1.0}, ArgumentError, "beta is 1.0, but it must lie between 0 and 1.*such as 0.5"),
    ],
)
def test_messages(changes, error, message):
    with pytest.raises(error, match=message):
        optimal_sigma(**({"distance": 1.0, "trace": 1.0, "num_examples": 1, "loss_bound": 1.0} | changes))
