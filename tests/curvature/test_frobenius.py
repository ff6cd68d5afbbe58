"""The Frobenius norm, its square and their errors, against closed forms; and the mean eigenvalue."""

import math

import pytest
import torch

from curvature_cases import case, dense_hessian
from flatmin.curvature.frobenius import frobenius_norm
from flatmin.curvature.normalized import normalized_trace
from flatmin.curvature.operators import Hessian
from flatmin.curvature.trace import trace
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError


def matrix(d=40, outliers=(), seed=0):
    g = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    values = torch.randn(d, generator=g, dtype=torch.float64)
    values[: len(outliers)] = torch.tensor(outliers)
    return basis @ torch.diag(values) @ basis.T


def probe_variance(A):
    """Of ‖Az‖² = z'Bz with B = A'A, for random signs: 2 (‖B‖_F² - Σ B_ii²)."""
    B = A.T @ A
    return 2 * float(B.square().sum() - B.diagonal().square().sum())


def test_plain_probes_have_the_variance_of_theory():
    A = matrix()
    estimate = frobenius_norm(A, 5000, deflation=0)
    expected = math.sqrt(probe_variance(A) / 5000)
    assert abs(estimate.square.value - float(A.square().sum())) < 4 * expected
    assert estimate.square.stderr == pytest.approx(expected, rel=0.06)
    assert estimate.stderr == pytest.approx(expected / (2 * float(A.norm())), rel=0.06)
    gaussian = frobenius_norm(A, 5000, deflation=0, law="gaussian").square
    assert gaussian.stderr == pytest.approx(math.sqrt(2 * float((A @ A).square().sum()) / 5000), rel=0.06)


@pytest.mark.parametrize("options", [{"num_matvecs": 60}, {"rtol": 0.05}, {"num_matvecs": 60, "deflation": 0}])
def test_intervals_hold_the_truth_as_often_as_they_say(options):
    A = matrix(outliers=(20.0, -15.0, 12.0)) if options.get("deflation") is None else matrix()
    truth = float(A.norm())
    estimates = [frobenius_norm(A, seed=seed, **options) for seed in range(200)]
    inside = sum(low <= truth <= high for low, high in (e.interval(0.95) for e in estimates))
    assert 178 <= inside <= 199
    squares = torch.tensor([e.square.value for e in estimates])
    assert abs(float(squares.mean()) - truth**2) < 4 * float(squares.std()) / math.sqrt(200)
    errors = torch.tensor([e.value - truth for e in estimates]).square().mean().sqrt()
    assert float(errors) == pytest.approx(sum(e.stderr for e in estimates) / 200, rel=0.2)


def test_outliers_cost_nothing_when_set_apart():
    A = matrix(outliers=(50.0, -40.0, 30.0))
    plain, deflated = (frobenius_norm(A, 100, deflation=k) for k in (0, 10))
    assert deflated.stderr < 0.05 * plain.stderr
    assert abs(deflated.value - float(A.norm())) < 4 * deflated.stderr


def test_it_need_not_be_symmetric():
    A = torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = frobenius_norm(A, 400)
    assert abs(estimate.value - float(A.norm())) < 4 * estimate.stderr


def test_tolerance_and_budget():
    A = matrix()
    reached = frobenius_norm(A, rtol=0.02)
    assert reached.converged
    assert reached.stderr <= 0.02 * reached.value
    short = frobenius_norm(A, 40, rtol=1e-4)
    assert not short.converged
    assert short.num_matvecs == 40
    assert repr(short).endswith("40 matvecs, not converged)")
    assert frobenius_norm(A, 25, deflation=20).num_matvecs == 25  # as many as the budget leaves two probes beside


@pytest.mark.parametrize("d", [1, 2, 3])
def test_small_and_zero(d):
    assert frobenius_norm(torch.zeros(d, d)).value == 0.0
    assert frobenius_norm(torch.zeros(d, d), rtol=0.1).converged
    assert frobenius_norm(torch.ones(d, d), 100).value == pytest.approx(d, rel=1e-5)


def test_long_sums_are_taken_in_double_precision():
    class Ones:
        """A multiple of the identity in float32."""

        shape, dtype, device = (3_000_000, 3_000_000), torch.float32, torch.device("cpu")

        def __matmul__(self, block):
            return block * 0.1

    estimate = frobenius_norm(Ones(), 2, deflation=0)
    assert estimate.square.value == pytest.approx(3_000_000 * 0.01, rel=1e-6)


def test_networks():
    model, loss_fn, batches = case("tanh")
    exact = float(dense_hessian(model, loss_fn, batches).norm())
    H = Hessian(model, loss_fn, batches)
    estimate = frobenius_norm(H, 60)
    assert abs(estimate.value - exact) < 4 * estimate.stderr
    assert estimate.gradients == pytest.approx(H.gradients)
    assert (estimate.num_matvecs, estimate.seed) == (60, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.eye(3), 1), {}, ArgumentError, "num_matvecs is 1"),
        ((torch.eye(3),), {"rtol": 0}, ArgumentError, "rtol is 0"),
        ((torch.eye(3),), {"deflation": -1}, ArgumentError, "deflation is -1.*two products each"),
        ((torch.eye(3),), {"seed": 0.5}, ArgumentTypeError, "seed is 0.5"),
        ((torch.eye(3),), {"law": "rademacer"}, ArgumentError, "'rademacer'.*mean 'rademacher'"),
        ((torch.full((3, 3), math.inf),), {}, NonFiniteError, "not finite"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        frobenius_norm(*arguments, **options)


def test_the_normalized_trace_is_the_mean_eigenvalue():
    A = matrix()
    options = {"seed": 3, "method": "hutchinson"}
    whole, mean = trace(A, 200, **options), normalized_trace(A, 200, **options)
    assert mean.value == pytest.approx(whole.value / 40)
    assert mean.stderr == pytest.approx(whole.stderr / 40)
    torch.testing.assert_close(mean.samples, whole.samples / 40)
    assert (mean.num_matvecs, mean.seed, mean.method) == (whole.num_matvecs, whole.seed, whole.method)
    assert abs(mean.value - float(torch.linalg.eigvalsh(A).mean())) < 4 * mean.stderr
    assert normalized_trace(A).value == pytest.approx(float(A.trace()) / 40)  # d products are exact
    shifted = A + 5 * torch.eye(40, dtype=torch.float64)
    absolute = normalized_trace(shifted, atol=0.1, method="hutchinson")
    assert absolute.stderr <= 0.1
    assert absolute.num_matvecs == trace(shifted, atol=4.0, method="hutchinson").num_matvecs
    assert normalized_trace(shifted, rtol=0.05, method="hutchinson").converged
