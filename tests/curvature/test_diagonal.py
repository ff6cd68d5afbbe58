"""Every entry of the diagonal within its error, and the errors themselves against what they should be."""

import math

import pytest
import torch

from curvature_cases import case, dense_hessian
from flatmin.curvature.diagonal import diagonal
from flatmin.curvature.operators import Hessian
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError


def symmetric(eigenvalues, seed=0):
    d = len(eigenvalues)
    g = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    return basis @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ basis.T


places = torch.arange(1, 61, dtype=torch.float64)
SPECTRA = {
    "flat": 1 + 0.5 * torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "1/i": 1 / places,
    "1/i^2": places**-2,
    "outliers": torch.where(places <= 10, 10.0, 0.1) + places / 1000,
    "indefinite": (-1) ** places / places.sqrt(),
}


def xdiag_line_by_line(A, signs):
    """The paper's estimator without its shortcuts: leave one probe out, find the range again, average."""
    n = signs.shape[1]
    total = torch.zeros(len(A), dtype=A.dtype)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        Q, _ = torch.linalg.qr(A @ signs[:, others])
        rest = A - Q @ Q.T @ A
        total += (Q @ Q.T @ A).diagonal() + signs[:, i] * (rest @ signs[:, i])
    return total / n


def signs_of(d, n, seed):
    from flatmin.curvature.counted import Counted
    from flatmin.curvature.diagonal import _STREAM
    from flatmin.curvature.draws import columns
    from flatmin.streams import Stream

    return columns(Counted(torch.eye(d, dtype=torch.float64)), Stream(seed).child(_STREAM), 0, n)


@pytest.mark.parametrize("n", [3, 4, 9])
def test_xdiag_is_the_papers(n):
    A = symmetric(SPECTRA["indefinite"][:24])
    signs = signs_of(24, n, seed=2)
    estimate = diagonal(A, 2 * n, seed=2)
    torch.testing.assert_close(estimate.value, xdiag_line_by_line(A, signs))
    assert estimate.num_matvecs == 2 * n
    # The error is 2/3 of the spread of the terms and 1/3 of the jackknife, which makes the estimate again without each.
    again = [xdiag_line_by_line(A, signs[:, [j for j in range(n) if j != i]]) for i in range(n)] if n > 2 else []
    jackknife = torch.stack(again).var(dim=0) * (n - 1) ** 2 / n
    terms = []
    for i in range(n):
        Q, _ = torch.linalg.qr(A @ signs[:, [j for j in range(n) if j != i]])
        terms.append((Q @ Q.T @ A).diagonal() + signs[:, i] * ((A - Q @ Q.T @ A) @ signs[:, i]))
    spread = torch.stack(terms).var(dim=0) / n
    torch.testing.assert_close(estimate.stderr.square(), (2 * spread + jackknife) / 3)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("num_matvecs", [20, 40])
def test_xdiag_errors_are_calibrated(name, num_matvecs):
    A = symmetric(SPECTRA[name])
    estimates = [diagonal(A, num_matvecs, seed=seed) for seed in range(150)]
    errors = torch.stack([e.value - A.diagonal() for e in estimates])
    claimed = torch.stack([e.stderr for e in estimates]).square().mean(dim=0).sqrt()
    true = errors.square().mean(dim=0).sqrt()
    assert 0.9 < float((claimed / true).median()) < 1.8
    inside = (errors.abs() < 2 * torch.stack([e.stderr for e in estimates])).double().mean()
    assert inside > 0.9
    unbiased = errors.mean(dim=0) / (true / math.sqrt(150))
    assert float(unbiased.square().mean().sqrt()) < 1.3


def test_hutchinson_has_the_variance_of_theory():
    A = symmetric(SPECTRA["1/i"])
    expected = (A.square().sum(dim=1) - A.diagonal().square()) / 50
    estimates = [diagonal(A, 50, method="hutchinson", seed=seed) for seed in range(200)]
    claimed = torch.stack([e.stderr.square() for e in estimates]).mean(dim=0)
    true = torch.stack([(e.value - A.diagonal()).square() for e in estimates]).mean(dim=0)
    torch.testing.assert_close(claimed, expected, rtol=0.1, atol=0)
    torch.testing.assert_close(true, expected, rtol=0.4, atol=0)  # of 200 squares: three deviations are 0.3
    assert float((true / expected).mean()) == pytest.approx(1, abs=0.05)
    assert estimates[0].num_matvecs == 50


def test_decay_is_what_xdiag_gains_from():
    A = symmetric(SPECTRA["1/i^2"])
    errors = {
        method: (diagonal(A, 40, method=method).value - A.diagonal()).norm() for method in ("xdiag", "hutchinson")
    }
    assert errors["xdiag"] < 0.1 * errors["hutchinson"]


@pytest.mark.parametrize("rank", [0, 1, 3, 4])
def test_low_rank_is_exact(rank):
    A = symmetric([2.0 + i for i in range(rank)] + [0.0] * (30 - rank))
    estimate = diagonal(A, 10)
    torch.testing.assert_close(estimate.value, A.diagonal())
    assert float(estimate.stderr.max()) < 1e-7


def test_as_many_products_as_dimensions_are_exact():
    A = symmetric(SPECTRA["flat"])
    for method in ("xdiag", "hutchinson"):
        estimate = diagonal(A, 100, method=method)
        torch.testing.assert_close(estimate.value, A.diagonal(), rtol=0, atol=0)
        assert (estimate.method, estimate.num_matvecs, float(estimate.stderr.max())) == ("exact", 60, 0.0)
    assert diagonal(torch.tensor([[3.0]]), 1).value.tolist() == [3.0]


@pytest.mark.parametrize("method", ["xdiag", "hutchinson"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_networks_by_name(method, dtype):
    model, loss_fn, batches = case("gelu", dtype)
    exact = dense_hessian(*case("gelu")).diagonal()
    H = Hessian(model, loss_fn, batches)
    estimate = diagonal(H, 36, method=method)
    assert estimate.value.dtype == dtype
    assert bool(((estimate.value - exact).abs() < 5 * estimate.stderr + 1e-5).all())
    assert {n: t.shape for n, t in estimate.tensors().items()} == {n: p.shape for n, p in model.named_parameters()}
    torch.testing.assert_close(H.layout.flatten(estimate.stderr_tensors()), estimate.stderr)
    assert estimate.gradients == pytest.approx(H.gradients)
    assert estimate.route


def test_seeds():
    A = symmetric(SPECTRA["1/i"])
    assert torch.equal(diagonal(A, 20, seed=1).value, diagonal(A, 20, seed=1).value)
    assert not torch.equal(diagonal(A, 20, seed=1).value, diagonal(A, 20, seed=2).value)
    state = torch.get_rng_state()
    diagonal(A, 20)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.eye(9), 5), {}, ArgumentError, "num_matvecs is 5, .*at least 6.*'xdiag' has no error"),
        ((torch.eye(9), 1), {"method": "hutchinson"}, ArgumentError, "num_matvecs is 1, .*at least 2"),
        ((torch.eye(9),), {"method": "xdaig"}, ArgumentError, "method is 'xdaig'.*mean 'xdiag'"),
        ((torch.eye(9),), {"seed": -1}, ArgumentError, "seed is -1"),
        ((torch.full((9, 9), math.nan), 8), {}, NonFiniteError, "not finite"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        diagonal(*arguments, **options)


def test_a_matrix_has_no_names():
    with pytest.raises(ArgumentTypeError, match=r"no named parameters.*in \.value"):
        diagonal(torch.eye(3), 3).tensors()
