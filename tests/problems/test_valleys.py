"""The valleys in closed form against autograd, scipy's integrators and the definition of a flat minimum."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.measures import gradient_flow_limit, is_flat
from flatmin.measures.normal import Normal
from flatmin.problems import CoshValley, Hyperbolas, Problem

VALLEYS = [
    Hyperbolas(),
    Hyperbolas(num_examples=3),
    Hyperbolas(num_examples=2, width=3),
    CoshValley(2),
    CoshValley(7, power=0.3),
    CoshValley(5, power=2.5),
]


def name(valley):
    return f"{type(valley).__name__} {valley.dim}"


def points(valley, *batch, seed=0, near=0.2):
    """Points near the sharp minimum, in float64."""
    noise = torch.randn(*batch, valley.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return valley.minima[-1].double() + near * noise


each = pytest.mark.parametrize("valley", VALLEYS, ids=name)


@each
def test_closed_forms_are_those_of_autograd(valley):
    w, v = points(valley, 2, 3), points(valley, 2, 3, seed=1)
    torch.testing.assert_close(valley.gradient(w), Problem._gradient(valley, w))
    torch.testing.assert_close(valley.hessian_product(w, v), Problem._hessian_product(valley, w, v))
    torch.testing.assert_close(valley.trace(w), Problem._trace(valley, w))
    H = torch.func.hessian(valley.value)(w[0, 0])
    torch.testing.assert_close(valley.hessian(w)[0, 0], H)
    torch.testing.assert_close(valley.trace(w)[0, 0], H.trace())


@each
def test_the_loss_is_the_mean_over_the_examples(valley):
    w = points(valley, 4)
    gradients = [valley.example_gradient(w, torch.full((4,), i)) for i in range(valley.num_examples)]
    torch.testing.assert_close(torch.stack(gradients).mean(0), valley.gradient(w))
    torch.testing.assert_close(valley.loss(w, valley.targets.double()), valley.value(w))
    i = torch.arange(4) % valley.num_examples  # each point an example of its own, against autograd
    torch.testing.assert_close(valley.example_gradient(w, i), super(type(valley), valley)._example_gradient(w, i))


@each
def test_minima_fit_every_example_with_slopes_that_do_not_vanish(valley):
    for w in valley.minima.double():
        torch.testing.assert_close(valley._predictions(w), valley.targets.double())
        assert not valley.gradient(w).any()
        slopes = torch.func.jacrev(valley._predictions)(w)
        assert bool((slopes.norm(dim=1) > 0.5).all())
        values = torch.linalg.eigvalsh(valley.hessian(w))
        assert values[0] > -1e-12
        assert int((values > 1e-9).sum()) == valley.num_examples  # the minima have d − n dimensions


@each
def test_flat_minima_are_flat_and_the_sharp_one_is_not_by_the_definition(valley):
    *flat, sharp = valley.minima.double()
    for w in flat:
        assert is_flat(valley.value, w, eps=1e-6, eps_prime=1e-6)
    found = is_flat(valley.value, sharp, eps=1e-6, eps_prime=1e-6)
    assert not found
    assert found.is_close
    torch.testing.assert_close(valley.trace_gradient(sharp), found.trace_gradient, atol=1e-7, rtol=0)
    assert float(valley.trace(sharp)) / valley.dim == pytest.approx(found.normalized_trace)


@each
def test_the_limit_is_where_the_integrators_end(valley):
    w = points(valley)
    solved = solve_ivp(
        lambda _, y: -valley.gradient(torch.from_numpy(y)).numpy(), (0, 100), w.numpy(), rtol=1e-11, atol=1e-12
    )
    limit = valley.limit(w)
    np.testing.assert_allclose(limit.numpy(), solved.y[:, -1], atol=1e-8)
    found = gradient_flow_limit(valley.value, w)
    torch.testing.assert_close(limit, found.point, atol=found.error, rtol=0)
    torch.testing.assert_close(valley.limit(limit), limit)


@each
def test_the_slope_of_the_trace_off_the_minima_is_that_of_the_definition(valley):
    w = points(valley, near=0.1)
    found = is_flat(valley.value, w, eps=1.0, eps_prime=1.0, trace=valley.trace)
    torch.testing.assert_close(valley.trace_gradient(w), found.trace_gradient, atol=1e-6, rtol=0)
    assert abs(float(valley.trace_gradient(w) @ valley.gradient(w))) < 1e-10  # ∂Φ(x)∇f(x) = 0


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_flow_of_example_1_keeps_its_conserved_quantity(a, b):
    w = torch.tensor([a, b], dtype=torch.float64)
    limit = Hyperbolas().limit(w)
    assert float(limit.prod()) == pytest.approx(1)
    assert float(limit[0] ** 2 - limit[1] ** 2) == pytest.approx(a**2 - b**2, abs=1e-9)


def test_the_flow_from_between_the_branches_ends_in_the_saddle():
    torch.testing.assert_close(Hyperbolas().limit(torch.tensor([1.5, -1.5])), torch.zeros(2))


def test_the_slope_of_the_trace_does_not_vanish_in_many_dimensions():
    slopes = []
    for dim in (2, 10, 1000):
        w = torch.zeros(dim, dtype=torch.float64)
        w[0] = 2.0
        slopes.append(float(CoshValley(dim).trace_gradient(w).norm()) * dim / (dim - 1))
    assert slopes == pytest.approx([math.sinh(2)] * 3)


@pytest.mark.parametrize("valley", [Hyperbolas(2), CoshValley(6)], ids=name)
def test_the_perturbed_gradients_drift_down_the_trace(valley):
    """Along the minima: RS by ρ²/2 ∇tr̄, SA by ρ²/2 ∇tr, which is d times as much."""
    w, rho, n = valley.minima[-1].double(), 0.02, 100_000
    tangents = Normal.at(valley.value, w)
    slope = tangents.tangential(torch.func.grad(valley.trace)(w))
    g = torch.randn(n, valley.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smoothed = valley.gradient(w + rho * g / g.norm(dim=1, keepdim=True))
    error = 4 * smoothed.std(0).norm() / math.sqrt(n)
    next_order = rho**2 * float(slope.norm()) * rho
    assert (tangents.tangential(smoothed.mean(0)) - rho**2 / 2 * slope / valley.dim).norm() <= error + next_order
    # Just off the minima, where ∇f_i has a direction. All examples and both signs, so that nothing is random.
    off = (w + 1e-7 * g[0]).expand(valley.num_examples, -1)
    example = torch.arange(valley.num_examples)
    up = valley.example_gradient(off, example)
    up = rho * up / up.norm(dim=1, keepdim=True)
    aware = (valley.example_gradient(off + up, example) + valley.example_gradient(off - up, example)).mean(0) / 2
    assert (tangents.tangential(aware) - rho**2 / 2 * slope).norm() <= next_order + 1e-6


def test_what_valleys_add_takes_points_by_name():
    valley, x = Hyperbolas(), torch.tensor([2.0, 1.0])
    for what in (valley.limit, valley.trace_gradient):
        assert torch.equal(what(valley.named(x))["w"], what(x))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Hyperbolas(0), ArgumentError, "num_examples is 0, but it must be at least 1. It is the number n"),
        (lambda: Hyperbolas(width=1.5), ArgumentTypeError, "width is 1.5, which is no whole number. It is the"),
        (lambda: CoshValley(1), ArgumentError, "dim is 1, but it must be at least 2. One coordinate lies along"),
        (lambda: CoshValley(3, power=0), ArgumentError, "power is 0, but it must be above 0. It says how fast"),
        (
            lambda: CoshValley(3).example_gradient(torch.zeros(4, 3), torch.tensor(0)),
            ArgumentError,
            "example has the shape (), but the points are (4,): each has an example of its own. Use expand",
        ),
        (
            lambda: CoshValley(3).example_gradient(torch.zeros(1, 3), torch.tensor([2])),
            ArgumentError,
            "example runs from 2 to 2, but there are 2 examples, numbered from 0.",
        ),
        (lambda: CoshValley(3).limit(torch.zeros(4)), ArgumentError, "the weights have the shape (4,), but one point"),
    ],
)  # fmt: skip
def test_bad_arguments_name_the_value_the_cause_and_the_remedy(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
