"""Plain probes: the trace and its standard error, against what is known in closed form."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvature_cases import case, dense_hessian
from flatmin.curvature import Hessian
from flatmin.curvature import trace as any_trace
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError

trace = partial(any_trace, method="hutchinson")


def symmetric(d=12, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    A = torch.randn(d, d, generator=g, dtype=torch.float64)
    return (A + A.T).to(dtype)


def probe_variance(A):
    """Variance of z'Az for random signs: 2 (|A|_F² - Σ A_ii²)."""
    return 2 * float(A.square().sum() - A.diagonal().square().sum())


def test_one_probe_has_the_variance_of_theory():
    A = symmetric()
    estimate = trace(A, 20_000, seed=3)
    assert abs(estimate.value - float(A.trace())) < 4 * math.sqrt(probe_variance(A) / 20_000)
    assert estimate.samples is not None
    assert float(estimate.samples.var()) == pytest.approx(probe_variance(A), rel=0.03)
    assert estimate.stderr == pytest.approx(math.sqrt(probe_variance(A) / 20_000), rel=0.02)
    assert estimate.stderr == pytest.approx(float(estimate.samples.std()) / math.sqrt(20_000), rel=1e-12)


@pytest.mark.parametrize("options", [{"num_matvecs": 60}, {"rtol": 0.1, "num_matvecs": 3000}], ids=["fixed", "rtol"])
def test_intervals_hold_the_truth_as_often_as_they_say(options):
    A = symmetric() + 5 * torch.eye(12, dtype=torch.float64)
    truth = float(A.trace())
    estimates = [trace(A, seed=seed, **options) for seed in range(200)]
    inside = sum(low <= truth <= high for low, high in (e.interval(0.95) for e in estimates))
    assert 180 <= inside <= 198  # 190 expected; three standard deviations of a binomial are 9
    errors = torch.tensor([e.value - truth for e in estimates])
    stderrs = torch.tensor([e.stderr for e in estimates])
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(stderrs.mean()), rel=0.15)


def test_stops_when_the_standard_error_is_small_enough():
    A = symmetric() + 20 * torch.eye(12, dtype=torch.float64)
    relative = trace(A, rtol=0.05)
    assert relative.converged
    assert relative.stderr <= 0.05 * abs(relative.value)
    assert 32 <= relative.num_matvecs < 10_000
    absolute = trace(A, atol=2.0)
    assert absolute.converged
    assert absolute.stderr <= 2.0
    either = trace(A, rtol=1e-9, atol=2.0)
    assert either.num_matvecs == absolute.num_matvecs


def test_says_when_the_budget_ended_first():
    estimate = trace(symmetric(), 50, rtol=1e-6)
    assert not estimate.converged
    assert estimate.num_matvecs == 50
    assert repr(estimate).endswith("50 matvecs, not converged)")
    assert trace(symmetric(), 5, rtol=0.5).converged is False  # too few probes to know one's own error


def test_the_running_mean_does_not_decide():
    """A trace near zero has no relative precision, however still the running mean stands."""
    A = torch.zeros(2, 2, dtype=torch.float64)
    A[0, 1] = A[1, 0] = 1.0
    assert not trace(A, 200, rtol=0.01).converged


def test_a_diagonal_is_exact_at_once():
    estimate = trace(torch.diag(torch.arange(5.0)), 2)
    assert (estimate.value, estimate.stderr) == (10.0, 0.0)
    assert trace(torch.eye(4), rtol=0.01).num_matvecs == 8


def test_seeds_and_blocks():
    A = symmetric()
    first = trace(A, 40, seed=1)
    assert first == trace(A, 40, seed=1)
    assert first.value != trace(A, 40, seed=2).value
    for block_size in (1, 7, 100):
        other = trace(A, 40, seed=1, block_size=block_size)
        torch.testing.assert_close(other.samples, first.samples, rtol=1e-12, atol=1e-12)
    assert torch.equal(trace(A, 64, seed=1).samples[:32], trace(A, 32, seed=1).samples)  # more probes, same first ones


def test_nothing_global_is_drawn():
    state = torch.get_rng_state()
    trace(symmetric(), 3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["gelu", "relu", "conv, batch-norm, dropout", "tied", "unused", "mappings"])
def test_networks(name):
    model, loss_fn, batches = case(name)
    matrix = dense_hessian(model, loss_fn, batches)
    estimate = trace(Hessian(model, loss_fn, batches), 200)
    expected = math.sqrt(probe_variance(matrix) / 200)
    assert abs(estimate.value - float(matrix.trace())) < 4 * expected
    assert estimate.stderr == pytest.approx(expected, rel=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_operators(dtype):
    A = symmetric(dtype=dtype)
    exact = trace(A.double(), 50)
    assert trace(A, 50).value == pytest.approx(exact.value, abs=0.3 if dtype == torch.bfloat16 else 1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(-10, 10), st.integers(0, 2**40))
def test_linear_in_the_operator(d, matrix_seed, factor, seed):
    A, B = symmetric(d, matrix_seed % 1000), symmetric(d, matrix_seed % 1000 + 1)
    total = trace(A + factor * B, 8, seed=seed).value
    assert total == pytest.approx(trace(A, 8, seed=seed).value + factor * trace(B, 8, seed=seed).value, abs=1e-8)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.ones(2, 3),), {}, ArgumentError, r"shape \(2, 3\), but it must be square"),
        ((torch.ones(3),), {}, ArgumentError, r"shape \(3,\)"),
        ((torch.ones(0, 0),), {}, ArgumentError, r"\(0, 0\).*at least 1"),
        ((torch.ones(2, 2, dtype=torch.long),), {}, ArgumentTypeError, r"dtype torch.int64.*\.float\(\)"),
        (
            (print,),
            {},
            ArgumentTypeError,
            "builtin_function_or_method without shape, dtype, device, __matmul__.*Hessian",
        ),
        ((torch.eye(2), 1), {}, ArgumentError, "num_matvecs is 1, .*at least 2.*standard error"),
        ((torch.eye(2), 2.5), {}, ArgumentTypeError, "num_matvecs is 2.5"),
        ((torch.eye(2),), {"rtol": 0.0}, ArgumentError, "rtol is 0.*leave it out"),
        ((torch.eye(2),), {"atol": -1}, ArgumentError, "atol is -1"),
        ((torch.eye(2),), {"seed": -1}, ArgumentError, "seed is -1"),
        ((torch.eye(2),), {"block_size": 0}, ArgumentError, "block_size is 0"),
        ((torch.full((2, 2), float("nan")),), {}, NonFiniteError, "product with the operator is not finite"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        trace(*arguments, **options)
