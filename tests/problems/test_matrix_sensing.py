"""Matrix sensing against a literal twin, Proposition 5.1, and the numbers of the authors' script."""

import functools

import numpy as np
import pytest
import torch

from flatmin import flows
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from flatmin.problems import MatrixSensing, descent, sensing_task


def drawn(d=5, r=2, n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    return torch.randn(d, r, **options), torch.randn(n, d, d, **options), torch.randn(d, d, **options)


def test_the_value_is_equation_16():
    U, A, W = drawn()
    literal = sum((torch.trace(a.T @ W @ W.T) - torch.trace(a.T @ U @ U.T)) ** 2 for a in A) / (2 * len(A))
    torch.testing.assert_close(MatrixSensing(U, A).value(W), literal)
    torch.testing.assert_close(MatrixSensing(U, A, convention="code").value(W), literal / 2)


def test_the_codes_gradient():
    """The authors' code symmetrises A and takes (1/n) Σ rᵢ AᵢW."""
    U, A, W = drawn()
    A = (A + A.mT) / 2
    r = torch.stack([(a * (W @ W.T - U @ U.T)).sum() for a in A])
    literal = torch.einsum("i,ijk->jk", r, A) @ W / len(A)
    torch.testing.assert_close(MatrixSensing(U, A, convention="code").gradient(W), literal)


def test_only_the_symmetric_part_of_a_measurement_counts():
    U, A, W = drawn()
    whole, half = MatrixSensing(U, A), MatrixSensing(U, (A + A.mT) / 2)
    torch.testing.assert_close(whole.gradient(W), half.gradient(W))
    torch.testing.assert_close(whole.trace(W), half.trace(W))


def test_measurements_may_come_in_parts():
    U, A, W = drawn()
    assert torch.equal(MatrixSensing(U, iter(A.split(7))).value(W), MatrixSensing(U, A).value(W))


def test_what_is_reported_along_the_way():
    U, A, W = drawn()
    problem, X = MatrixSensing(U, A), U @ U.T
    y = torch.einsum("ijk,jk->i", A, X)
    error = (torch.einsum("ijk,jk->i", A, W @ W.T) - y).square().mean() / y.square().mean()
    torch.testing.assert_close(problem.relative_error(W), error)
    torch.testing.assert_close(
        problem.squared_distance(W), torch.linalg.norm(X - W @ W.T) ** 2 / torch.linalg.norm(X) ** 2
    )
    torch.testing.assert_close(problem.nuclear_norm(W), torch.linalg.matrix_norm(W @ W.T, "nuc"))
    torch.testing.assert_close(problem.nuclear_norm(problem.minima[0]), torch.linalg.matrix_norm(X, "nuc"))


@pytest.mark.parametrize(("convention", "factor"), [("paper", 2), ("code", 1)])
def test_proposition_5_1(convention, factor):
    """At zero loss the trace is an average over measurements of mean 2c (d + 1) ‖W‖²: within 4 standard errors."""
    d, n = 12, 4000
    U, A, _ = drawn(d, 3, n, seed=1)
    problem = MatrixSensing(U, A, convention=convention)
    W = problem.minima[0] @ torch.linalg.qr(drawn(d)[2])[0]  # turned: still zero loss, no zero columns
    assert problem.value(W) < 1e-20
    S = (A + A.mT) / 2
    samples = 2 * factor * (S @ W).square().sum((1, 2))
    torch.testing.assert_close(problem.trace(W), samples.mean())
    expected = factor * (d + 1) * W.square().sum()
    torch.testing.assert_close(problem.expected_trace(W), expected)
    assert abs(problem.trace(W) - expected) < 4 * samples.std() / n**0.5


def test_the_papers_own_trace_drops_a_factor():
    """(1/n) Σ ‖AᵢW‖² with independent entries has the mean d ‖W‖², within 4 standard errors."""
    d, n = 12, 4000
    U, A, _ = drawn(d, 3, n, seed=2)
    samples = (A @ U).square().sum((1, 2))
    assert abs(samples.mean() - d * U.square().sum()) < 4 * samples.std() / n**0.5


def test_the_draws_are_those_of_the_authors_script():
    state = np.random.RandomState(3)
    U, A, A_validation, W = (state.randn(*shape) for shape in ((6, 2), (60, 6, 6), (60, 6, 6), (6, 6)))
    task = sensing_task(dim=6, rank=2, seed=3, dtype=torch.float64)
    y, y_validation = (torch.from_numpy(np.einsum("ijk,jk->i", a, U @ U.T)) for a in (A, A_validation))
    torch.testing.assert_close(task.train.targets, y)
    torch.testing.assert_close(task.validation.targets, y_validation)
    assert torch.equal(task.start, torch.from_numpy(W))


def test_drawing_leaves_the_global_generators_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    sensing_task(dim=4, rank=1)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_published_solution():
    """The norm that the authors' notebook has in a comment: numpy's seed 0, d = 100, r = 5."""
    U = np.random.RandomState(0).randn(100, 5)
    assert np.linalg.norm(U @ U.T) == pytest.approx(226.48042581120907, rel=1e-14)
    task = sensing_task(rank=5, num_measurements=1, dtype=torch.float64)
    assert torch.equal(task.train.factor, torch.from_numpy(U))


def test_gradient_descent_is_the_literal_one():
    U, A, W = drawn()
    problem = MatrixSensing(U, A, convention="code")
    *_, last = descent(problem, flows.sgd, W, lr=1e-3, num_steps=5)
    S, X = (A + A.mT) / 2, U @ U.T
    for _ in range(5):
        r = torch.einsum("ijk,jk->i", S, W @ W.T - X)
        W = W - 1e-3 * torch.einsum("i,ijk->jk", r, S) @ W / len(A)
    torch.testing.assert_close(last, W, rtol=1e-12, atol=1e-12)


def test_too_large_a_learning_rate_ends_in_a_message():
    task = sensing_task(dim=8, rank=2)
    flow = functools.partial(flows.nso, sigma=0.08)
    with pytest.raises(NonFiniteError, match=r"no longer finite after step \d+ of 500 at learning rate 1\. .*smaller"):
        list(descent(task.train, flow, task.start, lr=1.0, num_steps=500))


def test_bad_arguments():
    U, A, _ = drawn()
    with pytest.raises(
        ArgumentError, match=r"shape \(40, 5, 5\), but the factor has 4 rows, so they must be \(n, 4, 4\)"
    ):
        MatrixSensing(U[:4], A)
    with pytest.raises(ArgumentError, match=r"convention is 'papr', but .*Did you mean 'paper'"):
        MatrixSensing(U, A, convention="papr")
    with pytest.raises(ArgumentError, match=r"rank is 5, above dim, 4.*between 1 and 4"):
        sensing_task(dim=4, rank=5)
    with pytest.raises(ArgumentError, match="num_measurements is 0, but it must be at least 1"):
        sensing_task(dim=4, rank=1, num_measurements=0)
    with pytest.raises(ArgumentError, match=r"seed is 4294967296, but numpy's legacy generator takes seeds below"):
        sensing_task(dim=4, rank=1, seed=2**32)
    for factor in (U[:, 0], U.T):
        with pytest.raises(ArgumentError, match=r"factor has the shape .*but must be \(d, rank\), of rank 1 to d"):
            MatrixSensing(factor, A)
    with pytest.raises(ArgumentTypeError, match=r"factor is of torch.int64, but must be of real floating-point"):
        MatrixSensing(U.long(), A)
    with pytest.raises(ArgumentError, match=r"shape \(5, 5\), but the factor has 5 rows, so they must be \(n, 5, 5\)"):
        MatrixSensing(U, A[0])
    for none in ([], A[:0]):
        with pytest.raises(ArgumentError, match="there are no measurements, so that nothing is asked of W"):
            MatrixSensing(U, none)
    with pytest.raises(ArgumentTypeError, match=r"of torch.float32, but the measurements of torch.float64.*dtype"):
        MatrixSensing(U, A).value(torch.eye(5))


def test_one_dimension():
    """f = (1/4n) Σ a² (w² − u²)²: value and second derivative by hand."""
    problem = sensing_task(dim=1, rank=1, dtype=torch.float64).train
    w, a2 = torch.tensor([[3.0]], dtype=torch.float64), problem.targets.square().mean() / problem.factor**4
    gap = 9 - problem.factor**2
    torch.testing.assert_close(problem.value(w), (a2 * gap**2 / 4).squeeze())
    torch.testing.assert_close(problem.trace(w), (a2 * (gap + 18)).squeeze())
