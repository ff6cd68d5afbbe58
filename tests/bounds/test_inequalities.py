"""The inequalities: test vectors and properties that theory gives. Coverage is simulated in tests/lab."""

import math
from decimal import Decimal, localcontext
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flatmin.bounds import (
    INEQUALITIES,
    binary_kl,
    binomial,
    catoni,
    dziugaite_roy,
    dziugaite_roy_variance,
    kl_inverse,
    linear,
    quadratic,
    seeger_maurer,
)
from flatmin.errors import ArgumentError

VECTORS = {"seeger-maurer": 0.150122, "mcallester": 0.209420, "linear": 0.188119, "catoni": 0.149998}


@pytest.mark.parametrize(("name", "value"), VECTORS.items())
def test_vectors(name, value):
    assert INEQUALITIES[name](0.05, 500, 10_000, 0.05) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(("q", "c", "p"), [(0.05, 0.05, 0.149062), (0, 0.1, 0.095163), (0.3, 0.01, 0.367162)])
def test_vectors_of_the_inverse(q, c, p):
    assert kl_inverse(q, c) == pytest.approx(p, abs=5e-7)


BOUNDS = INEQUALITIES | {"dziugaite-roy": partial(dziugaite_roy, prior_variance=dziugaite_roy_variance(0.01))}
risks = st.floats(0, 1)
kls = st.floats(0, 1e5)
sizes = st.integers(8, 10**6)
deltas = st.floats(1e-12, 0.999)


@given(risks, st.floats(0, 50))
def test_the_inverse_is_an_upper_end(q, c):
    p = kl_inverse(q, c)
    assert q <= p <= 1
    assert p == 1 or binary_kl(q, p) >= c * (1 - 1e-9)
    assert p <= q + math.sqrt(c / 2) * (1 + 1e-9) + 1e-8  # Pinsker; near q the relative entropy cancels


@given(st.floats(0, 1), st.floats(-18, 3))
@settings(max_examples=300)
def test_the_inverse_is_rounded_upwards(q, exponent):
    """Against sixty digits: kl(q‖p) reaches c, for c far below the rounding of the two terms of kl as well."""
    c = 10**exponent
    p = kl_inverse(q, c)
    with localcontext() as context:
        context.prec = 60
        exact, given_up = Decimal(q), Decimal(p)
        first = exact * (exact / given_up).ln() if q > 0 else Decimal(0)
        second = (1 - exact) * ((1 - exact) / (1 - given_up)).ln() if p < 1 else Decimal("inf")
        assert first + second >= Decimal(c)


@pytest.mark.parametrize(
    ("errors", "n", "delta"), [(0, 8, 1e-300), (7, 8, 1e-300), (3, 10**9, 0.05), (900, 10**6, 0.1)]
)
def test_the_binomial_bound_is_rounded_upwards(errors, n, delta):
    exact = stats.beta.isf(delta, errors + 1, n - errors)
    assert exact * (1 - 1e-12) <= binomial(errors, n, delta) <= min(1.0, exact * (1 + 1e-4))


@pytest.mark.parametrize("name", INEQUALITIES)
@pytest.mark.parametrize("numbers", [(1.0, 0.0, 8, 0.05), (0.0, 0.0, 8, 1e-300), (1.0, 1e308, 8, 5e-324)])
def test_at_the_ends_of_the_range_a_bound_says_nothing(name, numbers):
    assert INEQUALITIES[name](*numbers) >= 1


@given(st.sampled_from(list(BOUNDS)), risks, kls, sizes, deltas)
@settings(max_examples=300)
def test_a_bound_is_no_less_than_the_empirical_risk(name, risk, kl, n, delta):
    assert BOUNDS[name](risk, kl, n, delta) >= risk * (1 - 1e-12)


@given(
    st.sampled_from(list(BOUNDS)),
    st.floats(0, 0.9),
    st.floats(0, 1e4),
    st.integers(8, 10**5),
    st.floats(1e-6, 0.4),
)
@settings(max_examples=300)
def test_monotone(name, risk, kl, n, delta):
    bound = BOUNDS[name]
    here = bound(risk, kl, n, delta) * (1 + 1e-12)
    assert bound(risk, 2 * kl + 1, n, delta) >= here / (1 + 1e-11)
    assert bound(risk, kl, 2 * n, delta) <= here
    assert bound(risk, kl, n, 2 * delta) <= here
    assert bound(min(1.0, risk + 0.05), kl, n, delta) >= here / (1 + 1e-11)


@given(risks, kls, sizes, deltas)
@settings(max_examples=300)
def test_the_order_that_theory_gives(risk, kl, n, delta):
    """By Pinsker's inequality and its refinement for small risks, the inverse is below what is derived from it."""
    tight = seeger_maurer(risk, kl, n, delta) * (1 - 1e-9)
    assert tight <= INEQUALITIES["mcallester"](risk, kl, n, delta) + 1e-9
    assert tight <= quadratic(risk, kl, n, delta) + 1e-9
    assert quadratic(risk, kl, n, delta) == pytest.approx(INEQUALITIES["lambda"](risk, kl, n, delta), rel=1e-9)


@given(st.integers(1, 300), st.data(), st.floats(1e-6, 0.5))
@settings(max_examples=100)
def test_the_binomial_bound_is_that_of_clopper_and_pearson(n, data, delta):
    errors = data.draw(st.integers(0, n))
    exact = 1.0 if errors == n else stats.beta.ppf(1 - delta, errors + 1, n - errors)
    assert binomial(errors, n, delta) == pytest.approx(exact, rel=1e-6)


def test_dziugaite_and_roy_pay_for_the_choice_of_the_prior():
    variance = dziugaite_roy_variance(0.003)
    j = 100 * math.log(0.1 / variance)
    assert j == pytest.approx(round(j), abs=1e-9)
    expected = kl_inverse(0.1, (50 + 2 * math.log(round(j)) + math.log(math.pi**2 * 1000 / (6 * 0.025))) / 999)
    assert dziugaite_roy(0.1, 50, 1000, 0.025, prior_variance=variance) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seeger_maurer(1.2, 1, 100, 0.05), r"risk is 1.2.*losses in \[0, 1\].*clamped"),
        (lambda: seeger_maurer(0.2, -1, 100, 0.05), "kl is -1.*at least 0"),
        (lambda: seeger_maurer(0.2, math.nan, 100, 0.05), "kl is nan"),
        (lambda: seeger_maurer(0.2, 1, 7, 0.05), "n is 7.*at least 8"),
        (lambda: seeger_maurer(0.2, 1, 100, 0.0), r"delta is 0.0.*confidence of 95 %"),
        (lambda: seeger_maurer(0.2, 1, 100, 1.0), "delta is 1.0"),
        (lambda: kl_inverse(0.2, math.nan), "c is nan"),
        (lambda: kl_inverse(-0.1, 0.1), "q is -0.1"),
        (lambda: linear(0.2, 1, 100, 0.05, betas=[]), r"betas is \[\].*between 0 and 1"),
        (lambda: linear(0.2, 1, 100, 0.05, betas=[1.5]), r"betas is \[1.5\].*does not hold"),
        (lambda: catoni(0.2, 1, 100, 0.05, lambdas=[-1.0]), r"lambdas is \[-1.0\]"),
        (lambda: dziugaite_roy_variance(math.inf), "variance is inf"),
        (lambda: binomial(5, 4, 0.1), "errors is 5 of n = 4.*swapped"),
        (lambda: dziugaite_roy(0.1, 1, 100, 0.05, prior_variance=0.2), "prior_variance is 0.2"),
        (lambda: dziugaite_roy(0.1, 1, 100, 0.05, prior_variance=0.00123), "no member of the grid.*Round it"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
