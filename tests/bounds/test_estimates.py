"""Estimates in the shape of bounds: their formulas, and that none is called a certificate."""

import math

import pytest
from scipy.optimize import minimize_scalar

from flatmin.bounds import BoundEstimate, Certificate, authors_estimate, equation_6, equation_28, hessian_estimate
from flatmin.errors import ArgumentError

NUMBERS = {"trace": 4500.0, "distance": 3.0, "n": 6667, "loss_bound": math.log(100)}


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.9])
def test_the_sigma_is_where_the_quadratic_picture_is_lowest(beta):
    C, r, n, alpha = NUMBERS["loss_bound"], NUMBERS["distance"], NUMBERS["n"], NUMBERS["trace"]

    def bound(s):
        kl = r**2 / (2 * s**2)
        return (0.4 + s**2 / 2 * alpha) / beta + C * (kl + math.log(20)) / (2 * beta * (1 - beta) * n)

    found = hessian_estimate(0.4, **NUMBERS, beta=beta)
    best = minimize_scalar(bound, bounds=(1e-3, 1), method="bounded", options={"xatol": 1e-9})
    assert found.sigma == pytest.approx(best.x, rel=1e-4)
    assert found.value == pytest.approx(best.fun, rel=1e-9)


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.9])
def test_the_sigma_of_equation_28_is_where_the_terms_of_27_are_least(beta):
    C, r, n, alpha = NUMBERS["loss_bound"], NUMBERS["distance"], NUMBERS["n"], NUMBERS["trace"]

    def terms(s):
        return (1 - beta) * alpha * s**2 / (2 * beta) + C * r**2 / (4 * beta * (1 - beta) * n * s**2)

    sigma = equation_28(**NUMBERS, beta=beta)
    best = minimize_scalar(terms, bounds=(1e-3, 1), method="bounded", options={"xatol": 1e-9})
    assert sigma == pytest.approx(best.x, rel=1e-4)
    assert terms(sigma) == pytest.approx(math.sqrt(C * alpha * r**2 / (2 * n)) / beta)
    assert hessian_estimate(0.4, **NUMBERS, beta=beta).sigma < sigma


@pytest.mark.parametrize(
    ("classes", "trace", "n", "value"),
    [(10, 4.0 * 2000, 45_000, None), (100, 4500.0, 6667, 1.763)],
)
def test_the_leading_term_of_equation_6(classes, trace, n, value):
    found = equation_6(0.0, trace=trace, distance=1.0, n=n, loss_bound=math.log(classes))
    assert found.complexity == pytest.approx(math.sqrt(math.log(classes) * trace / n))
    if value:
        assert found.value == pytest.approx(value, abs=1e-3)


def test_the_authors_number_leaves_the_loss_outside_the_root():
    found = authors_estimate(0.1, traces=[4.0, -1.0], square_distances=[2.0, 5.0], n=8, largest_loss=3.0)
    assert found.complexity == pytest.approx(3.0)
    assert found.value == pytest.approx(3.1)


def test_none_is_called_a_certificate():
    for estimate in (equation_6(0.1, **NUMBERS), hessian_estimate(0.1, **NUMBERS)):
        assert isinstance(estimate, BoundEstimate)
        assert not isinstance(estimate, Certificate)
        assert "not a certificate" in repr(estimate)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: equation_6(0.1, **NUMBERS | {"trace": -1.0}), "trace is -1.0.*noise costs nothing"),
        (lambda: hessian_estimate(0.1, **NUMBERS, delta=0.0), "delta is 0.0"),
        (lambda: equation_28(**NUMBERS | {"trace": 0.0}), "trace is 0, .*every noise is free"),
        (lambda: equation_28(**NUMBERS, beta=1.0), "beta is 1.0"),
        (lambda: authors_estimate(0, traces=[1], square_distances=[], n=1, largest_loss=1), "1 traces and 0"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
