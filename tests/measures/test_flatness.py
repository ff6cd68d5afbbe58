"""The limit of the gradient flow against conserved quantities and scipy's integrators, its derivative, and flatness."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import flatmin as fm
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from flatmin.measures import gradient_flow_limit, is_flat
from flatmin.measures.normal import Normal

COORDINATE = st.floats(0.3, 2.5)


def point(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def example1(x):
    return (x[0] * x[1] - 1) ** 2


def limit_of_example1(x):
    """By the conserved c = x₁² - x₂² on the branch of x₁ > 0, where x₁⁴ - c x₁² - 1 = 0."""
    c = x[0] ** 2 - x[1] ** 2
    first = torch.sqrt((c + torch.sqrt(c**2 + 4)) / 2)
    return torch.stack([first, 1 / first])


def two_products(x):
    """Two examples over five parameters, tied by x₄: Φ has no closed form."""
    return ((x[0] * x[1] + x[4] - 1) ** 2 + (x[2] * torch.sin(x[3]) + x[4] ** 2 - 0.5) ** 2) / 2


@settings(deadline=None, max_examples=10)
@given(COORDINATE, COORDINATE)
def test_the_limit_of_example_1_has_its_closed_form_within_the_error_that_is_told(a, b):
    x = point(a, b)
    found = gradient_flow_limit(example1, x)
    away = float((found.point - limit_of_example1(x)).norm())
    assert away <= found.error + 1e-14
    assert found.error < 1e-6
    assert found.gradient_norm == pytest.approx(float(torch.func.grad(example1)(found.point).norm()), rel=1e-6)


def test_the_limit_is_that_of_scipy():
    x = point(0.7, 1.9, -0.4, 1.2, 0.3)
    gradient = torch.func.grad(two_products)
    solved = solve_ivp(
        lambda _, y: -gradient(torch.from_numpy(y)).numpy(), (0, 200.0), x.numpy(), "LSODA", rtol=1e-12, atol=1e-13
    )
    found = gradient_flow_limit(two_products, x)
    np.testing.assert_allclose(found.point.numpy(), solved.y[:, -1], atol=1e-7, rtol=0)


def test_a_stiff_quadratic_is_followed_along_its_slow_directions_too():
    """Fast directions carry most of the slope, and would hide how much is left along the slow ones."""
    curvatures = point(0.0, 1.0, 100.0)
    found = gradient_flow_limit(lambda x: (curvatures * x.square()).sum() / 2, point(2.0, 1.0, 1.0), rtol=1e-7)
    torch.testing.assert_close(found.point, point(2.0, 0.0, 0.0), atol=4e-7, rtol=0)
    assert found.num_gradients > 6 * found.num_steps


def test_a_tighter_tolerance_is_nearer_and_takes_more_steps():
    x = point(4.0, 0.3)
    coarse, fine = (gradient_flow_limit(example1, x, rtol=rtol) for rtol in (1e-4, 1e-10))
    truth = limit_of_example1(x)
    assert (fine.point - truth).norm() < 1e-8 < (coarse.point - truth).norm() < 1e-2
    assert coarse.num_steps < fine.num_steps


def test_a_point_without_slope_is_its_own_limit():
    for x in (point(2.0, 0.5), point(0.0, 0.0)):  # a minimum, and the saddle between the branches
        found = gradient_flow_limit(example1, x)
        assert torch.equal(found.point, x)
        assert (found.num_steps, found.error, found.time) == (0, 0.0, 0.0)


def test_a_minimum_that_is_no_quadratic_is_reached():
    found = gradient_flow_limit(lambda x: (x**4).sum(), point(1.0))
    assert abs(float(found.point)) < 1e-11


def test_points_keep_their_shape():
    x = point(2.0, 1.0).view(2, 1)
    found = gradient_flow_limit(lambda x: example1(x.flatten()), x)
    assert found.point.shape == found.pullback(torch.ones_like(x)).shape == (2, 1)


@settings(deadline=None, max_examples=6)
@given(COORDINATE, COORDINATE, st.floats(-1, 1), st.floats(-1, 1))
def test_the_pullback_off_the_minima_is_the_derivative_of_the_closed_form(a, b, u, v):
    x, covector = point(a, b), point(u, v)
    exact = torch.func.vjp(limit_of_example1, x)[1](covector)[0]
    torch.testing.assert_close(gradient_flow_limit(example1, x).pullback(covector), exact, atol=1e-5, rtol=1e-5)


def test_the_pullback_is_the_derivative_by_differences_where_nothing_is_closed():
    x, covector, h = point(0.7, 1.9, -0.4, 1.2, 0.3), point(0.3, -1.0, 0.7, 0.2, 0.5), 1e-4
    slopes = [
        (gradient_flow_limit(two_products, x + h * e).point - gradient_flow_limit(two_products, x - h * e).point)
        @ covector
        / (2 * h)
        for e in torch.eye(5, dtype=torch.float64)
    ]
    pulled = gradient_flow_limit(two_products, x).pullback(covector)
    torch.testing.assert_close(pulled, torch.stack(slopes), atol=1e-5, rtol=1e-5)


def test_moving_along_the_gradient_does_not_move_the_limit():
    """∂Φ(x)∇f(x) = 0 (Lemma 1), so that every pullback is orthogonal to the gradient."""
    x = point(0.7, 1.9, -0.4, 1.2, 0.3)
    gradient = torch.func.grad(two_products)(x)
    limit = gradient_flow_limit(two_products, x)
    for covector in torch.eye(5, dtype=torch.float64):
        pulled = limit.pullback(covector)
        assert abs(float(pulled @ gradient)) < 1e-7 * float(gradient.norm())


def test_on_the_minima_the_derivative_of_the_limit_projects_onto_the_tangents():
    x = gradient_flow_limit(two_products, point(0.7, 1.9, -0.4, 1.2, 0.3), rtol=1e-12).point
    P = torch.stack([gradient_flow_limit(two_products, x).pullback(e) for e in torch.eye(5, dtype=torch.float64)])
    across = torch.func.jacrev(  # the two examples' slopes span the normal space
        lambda x: torch.stack([x[0] * x[1] + x[4], x[2] * torch.sin(x[3]) + x[4] ** 2])
    )(x)
    expected = torch.eye(5, dtype=torch.float64) - torch.linalg.pinv(across) @ across
    torch.testing.assert_close(P, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(P @ P, P, atol=1e-7, rtol=0)


def test_the_parts_of_a_hessian_are_its_null_space_and_its_pseudo_inverse():
    A = torch.diag(point(-3.0, 0.0, 1e-9, 2.0))
    normal = Normal(*torch.linalg.eigh(A))
    u = point(1.0, 2.0, 3.0, 4.0)
    torch.testing.assert_close(normal.tangential(u), point(0.0, 2.0, 3.0, 0.0))
    torch.testing.assert_close(normal.newton(u), point(-1 / 3, 0.0, 0.0, 2.0))


@pytest.mark.parametrize(("x", "flat"), [((1.0, 1.0), True), ((-1.0, -1.0), True), ((2.0, 0.5), False)])
def test_the_flat_minima_of_example_1(x, flat):
    found = is_flat(example1, point(*x), eps=0.01, eps_prime=0.1)
    assert bool(found) is found.is_flat is flat
    assert found.is_close
    assert found.is_minimum
    assert found.is_stationary is flat
    assert found.normalized_trace == pytest.approx(x[0] ** 2 + x[1] ** 2)
    # Along the tangent (a, -b)/|(a, b)| of the hyperbola at (a, b), tr̄ = a² + b² has the slope 2(a² - b²)/|(a, b)|.
    assert found.trace_gradient_norm == pytest.approx(2 * abs(x[0] ** 2 - x[1] ** 2) / math.hypot(*x), abs=1e-12)
    assert found.num_tangents == 1
    assert found.smallest_eigenvalue == pytest.approx(0, abs=1e-12)


def test_every_quantity_off_the_minima_is_that_of_the_closed_forms():
    x = point(1.2, 1.0)
    found = is_flat(example1, x, eps=0.2, eps_prime=1.0)
    limit = limit_of_example1(x)
    gradient = torch.func.grad(lambda x: limit_of_example1(x).square().sum())(x)
    assert found.gradient_norm == pytest.approx(2 * 0.2 * math.hypot(1.2, 1.0))
    assert found.excess == pytest.approx(0.04)
    assert found.distance == pytest.approx(float((x - limit).norm()), rel=1e-6)
    assert found.normalized_trace == pytest.approx(float(limit.square().sum()))
    torch.testing.assert_close(found.trace_gradient, gradient, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.limit, limit, atol=1e-7, rtol=0)
    assert found.trace_gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-6)
    assert (found.eps, found.eps_prime) == (0.2, 1.0)


def test_both_thresholds_decide():
    x = point(1.2, 1.0)
    seen = is_flat(example1, x, eps=1.0, eps_prime=1.0)
    distance, slope = seen.distance, seen.trace_gradient_norm
    for a, b in [(1.01, 1.01), (0.99, 1.01), (1.01, 0.99)]:
        found = is_flat(example1, x, eps=a * distance, eps_prime=b * slope)
        assert (found.is_close, found.is_stationary, bool(found)) == (a > 1, b > 1, a > 1 and b > 1)


def test_a_saddle_is_no_minimum_however_flat_it_is():
    found = is_flat(example1, point(0.0, 0.0), eps=0.1, eps_prime=0.1)
    assert (found.is_close, found.is_stationary, found.is_minimum, bool(found)) == (True, True, False, False)
    assert (found.smallest_eigenvalue, found.largest_eigenvalue) == pytest.approx((-2, 2))


@pytest.mark.parametrize("x", [(0.0, 0.0), (1.5, -1.5)], ids=["at it", "into it"])
def test_neither_is_a_flow_that_ends_in_a_saddle(x):
    found = is_flat(example1, point(*x), eps=10.0, eps_prime=0.1)
    assert (found.is_close, found.is_minimum, bool(found)) == (True, False, False)


def test_nor_a_maximum():
    found = is_flat(lambda x: -x.square().sum(), point(0.0, 0.0), eps=0.1, eps_prime=0.1)
    assert (found.is_minimum, bool(found), found.largest_eigenvalue) == (False, False, -2)


def test_a_minimum_without_a_valley_is_flat():
    for x in (point(0.05), torch.tensor(0.05).double()):
        found = is_flat(lambda x: x.square().sum(), x, eps=0.1, eps_prime=0.1)
        assert (bool(found), found.num_tangents, found.trace_gradient_norm) == (True, 0, 0.0)


def test_a_trace_in_closed_form_gives_what_autograd_gives():
    x = point(1.5, 0.8)
    by_autograd = is_flat(example1, x, eps=0.1, eps_prime=0.1)
    closed = is_flat(example1, x, eps=0.1, eps_prime=0.1, trace=lambda x: 2 * x.square().sum())
    torch.testing.assert_close(closed.trace_gradient, by_autograd.trace_gradient)
    assert closed.normalized_trace == pytest.approx(by_autograd.normalized_trace)


def test_more_dimensions_than_one_block_of_columns():
    """f = ½ Σ (1 + x₀²)^k xₖ² along the axis of x₀: the trace Σ (1 + x₀²)^k is known."""
    powers = torch.arange(1, 130, dtype=torch.float64) / 130

    def f(x):
        return ((1 + x[0] ** 2) ** powers * x[1:].square()).sum() / 2

    x = torch.zeros(130, dtype=torch.float64)
    x[0] = 0.5
    found = is_flat(f, x, eps=0.1, eps_prime=0.1)
    assert found.normalized_trace == pytest.approx(float((1.25**powers).sum()) / 130)
    assert found.trace_gradient_norm == pytest.approx(float((powers * 1.25 ** (powers - 1)).sum()) / 130)
    assert found.num_tangents == 1


def test_the_perturbed_gradient_drifts_down_the_trace():
    """E ∇f(x + ρg) = ∇f(x) + ρ²/2 ∇tr̄(x) + O(ρ³), within standard errors and what the next order leaves."""
    x, rho, n = point(2.0, 0.5), 0.1, 200_000
    g = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = x + rho * g / g.norm(dim=1, keepdim=True)
    gradients = torch.func.vmap(torch.func.grad(example1))(points) - torch.func.grad(example1)(x)
    error = gradients.std(0) / math.sqrt(n)
    # Beyond: ∇f is cubic in x, so that the fourth order of its even part vanishes, and the identity is exact.
    assert bool(((gradients.mean(0) - rho**2 / 2 * 2 * x).abs() <= 4 * error).all())


def test_measuring_changes_nothing():
    x = point(2.0, 1.0)
    kept, state = x.clone(), torch.get_rng_state()
    is_flat(example1, x, eps=0.1, eps_prime=0.1)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None


def test_projecting_out_is_there_as_orthogonal_to():
    """Definition 4, and u itself where v is zero."""
    u, v = fm.vectors.Vector({0: point(1.0, 2.0)}), fm.vectors.Vector({0: point(1.0, 0.0)})
    assert torch.equal(u.orthogonal_to(v).tensors[0], point(0.0, 2.0))
    assert torch.equal(u.orthogonal_to(0.0 * v).tensors[0], u.tensors[0])


@pytest.mark.parametrize("slope", [1.0, 1e-8, 1e8])
def test_a_function_without_a_minimum_ends_in_a_message(slope):
    """Where nothing curves steps grow without end, but lengths and norms stay finite."""
    with pytest.raises(ArgumentError, match=r"The flow has not converged after 300 steps.*may lie at infinity"):
        gradient_flow_limit(lambda x: slope * x.sum(), point(1.0, 2.0), max_steps=300)


X = point(2.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradient_flow_limit(example1, [1.0]), ArgumentTypeError, "x is a list, but the flow starts from"),
        (lambda: is_flat(example1, X.float(), 0.1, 0.1), ArgumentTypeError, "x is of torch.float32, whose rounding"),
        (lambda: gradient_flow_limit(example1, X[:0]), ArgumentError, "x has no elements"),
        (
            lambda: is_flat(lambda x: x.square(), X, 0.1, 0.1),
            ArgumentTypeError,
            "f(x) is a tensor of shape (2,), but must be a scalar tensor. Is x of shape (2,) many points at once? Then",
        ),
        (lambda: is_flat(lambda _: 1.0, X, 0.1, 0.1), ArgumentTypeError, "f(x) is a float, but must be a scalar"),
        (lambda: is_flat(example1, X, 0.1, 0.1, trace=lambda x: x), ArgumentTypeError, "trace(x) is a tensor of shape"),
        (
            lambda: gradient_flow_limit(example1, X).pullback(X[:1]),
            ArgumentError,
            "covector has the shape (1,), but the point (2,). Pass the gradient at the limit",
        ),
        (lambda: gradient_flow_limit(example1, X, rtol=0), ArgumentError, "rtol is 0, but it must be above 0"),
        (lambda: gradient_flow_limit(example1, X, atol=-1.0), ArgumentError, "atol is -1.0, but it must be finite and"),
        (lambda: gradient_flow_limit(example1, X, max_steps=0), ArgumentError, "max_steps is 0, but it must be at"),
        (lambda: is_flat(example1, X, 0, 0.1), ArgumentError, "eps is 0, but it must be above 0. It is the distance"),
        (lambda: is_flat(example1, X, 0.1, "0.1"), ArgumentTypeError, "eps_prime is '0.1', which is no number"),
        (
            lambda: gradient_flow_limit(example1, X, max_steps=3),
            ArgumentError,
            "The flow has not converged after 3 steps, at time .*Its minimum may lie at infinity, or the problem is",
        ),
        (
            lambda: gradient_flow_limit(lambda x: torch.exp(-x).sum(), X, max_steps=200),
            ArgumentError,
            "The flow has not converged after 200 steps",
        ),
        (
            lambda: gradient_flow_limit(lambda x: (x * torch.where(x < 1, torch.nan, 1)).sum(), point(1.0)),
            NonFiniteError,
            "No step is short enough at .*: f is not smooth there, or not defined beyond. Has it a minimum",
        ),
        (
            lambda: gradient_flow_limit(lambda x: x.sqrt().sum(), point(0.0)),
            NonFiniteError,
            "The gradient is inf at .*, 0 steps down the flow. Is f unbounded from below",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_name_the_value_the_cause_and_the_remedy(call, error, message):
    with pytest.raises(error, match=message if ".*" in message else re.escape(message)):
        call()
