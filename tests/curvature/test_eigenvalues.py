"""Eigenvalues against dense solvers, and the spectra that break Krylov methods."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh

from curvature_cases import CASES, case, dense_hessian
from flatmin.curvature import Hessian, top_eigenvalues
from flatmin.curvature.krylov import Krylov
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError


def with_spectrum(values, seed=0, dtype=torch.float64):
    """A symmetric matrix of these eigenvalues, in a random basis."""
    g = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    A = (Q * values) @ Q.T
    return ((A + A.T) / 2).to(dtype)


SCORES = {"magnitude": torch.abs, "largest": torch.positive, "smallest": torch.neg}


def expected(A, k, which="magnitude"):
    values = torch.linalg.eigvalsh(A.double())
    return values[SCORES[which](values).argsort(descending=True)][:k]


def check(A, k, tol=1e-3, **options):
    """Converged, right, orthonormal, and honest about residuals."""
    pairs = top_eigenvalues(A, k, tol=tol, **options)
    eps = torch.finfo(torch.promote_types(A.dtype, torch.float32)).eps
    floor = 200 * eps * (float(torch.linalg.matrix_norm(A.double(), 2)) or 1.0)
    assert pairs.converged
    assert len(pairs) == k
    assert pairs.num_matvecs <= len(A)
    truth = expected(A, k, options.get("which", "magnitude"))
    torch.testing.assert_close(pairs.values.abs(), truth.abs(), rtol=tol, atol=floor)
    assert bool((pairs.errors <= (tol * pairs.values.abs()).clamp(min=floor)).all())
    distances = (torch.linalg.eigvalsh(A.double())[:, None] - pairs.values).abs().min(dim=0).values
    assert bool((distances <= pairs.residuals + floor / 10).all())
    X = pairs.vectors.double()
    torch.testing.assert_close(X.T @ X, torch.eye(k, dtype=torch.float64), rtol=0, atol=100 * eps)
    residuals = (A.double() @ X - X * pairs.values).norm(dim=0)
    torch.testing.assert_close(residuals, pairs.residuals, rtol=0.05, atol=floor)
    return pairs


SPECTRA = {
    "identity": [1.0] * 7,
    "zero": [0.0] * 6,
    "rank one": [3.0] + [0.0] * 9,
    "rank one, negative": [-3.0] + [0.0] * 9,
    "one by one": [-2.0],
    "graded": [10.0**-i for i in range(6)],
    "clustered": [9.0, 8.99, 8.98, 8.97, 3.0, 2.99, 2.98, 1.0, 0.1, 0.0, -4.0, -4.01],
    "repeated": [5.0, 5.0, 1.0, 0.5, 0.5, 0.0, 0.0],
    "both ends": [5.0, -4.9, 4.8, -4.7, 1.0, -1.0, 0.3, 0.2],
    "plus and minus": [2.0, -2.0, 1.0, -1.0, 0.5],
    "close": [5.0, 4.999, 4.998, 1.0, 0.5, 0.2],
    "decaying": [2.0**-i for i in range(20)],
    "huge": [1e12, 1e11, 1.0, 0.0],
    "tiny": [1e-12, -1e-13, 0.0, 0.0],
}


@pytest.mark.parametrize("which", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_that_break_krylov_methods(name, dtype, which):
    """To full accuracy, since what lies closer together than the tolerance is one value to one vector."""
    A = with_spectrum(SPECTRA[name], dtype=dtype)
    for k in {1, 2, 3, len(A)}:
        if k <= len(A):
            check(A, k, tol=1e-12, block_size=2, which=which)
            if name != "repeated":
                check(A, k, tol=1e-12, which=which)


def test_copies_take_a_block_or_an_invariant_space():
    A = with_spectrum([5.0, 5.0, 5.0, *torch.linspace(-1, 3, 60).tolist()])
    once = top_eigenvalues(A, 2)
    assert once.values.tolist() == pytest.approx([5.0, 3.0], rel=1e-3)  # eigenvalues both, if not the first
    assert check(A, 3, block_size=3).num_matvecs < 40
    few = with_spectrum([5.0, 5.0, 5.0, *[1.0] * 30, *[-2.0] * 30])
    assert check(few, 3).num_matvecs == 9  # 5, 1 and -2, three times each
    assert check(few, 5).values.tolist() == pytest.approx([5.0, 5.0, 5.0, -2.0, -2.0])


def test_wide_blocks_have_a_budget():
    values = torch.zeros(500, dtype=torch.float64)
    values[:3] = torch.tensor([3.0, 2.0, 1.0])
    assert top_eigenvalues(Diagonal(values), 2, block_size=150).values.tolist() == pytest.approx([3.0, 2.0])


@pytest.mark.parametrize("k", [1, 4])
def test_both_ends(k):
    A = with_spectrum([9.0, 7.0, 6.0, 5.5, *torch.linspace(-1, 3, 90).tolist(), -2.0, -4.0, -4.2, -8.0])
    pairs = top_eigenvalues(A, k, which="both", tol=1e-6)
    truth = torch.linalg.eigvalsh(A)
    torch.testing.assert_close(pairs.values, torch.cat([truth[-k:].flip(0), truth[:k]]), rtol=1e-6, atol=0)
    assert pairs.vectors.shape == (98, 2 * k)
    assert pairs.converged


def test_errors_are_those_of_the_values():
    """Of 200 spectra with outliers, and at every stage that was called converged."""
    g = torch.Generator().manual_seed(1)
    products, distances, errors, residuals = [], [], [], []
    for seed in range(200):
        outliers = torch.tensor([200.0, 140, 100, 70, 48, 35, 24, 17, 11])
        outliers *= 1 + 0.1 * torch.rand(9, generator=g)
        bulk = torch.randn(500, generator=g)
        A = torch.cat([outliers, bulk]).double()
        pairs = top_eigenvalues(Diagonal(A), 5, seed=seed)
        products.append(pairs.num_matvecs)
        distances.append((pairs.values - outliers[:5]).abs() / pairs.values)
        errors.append(pairs.errors / pairs.values)
        residuals.append(pairs.residuals / pairs.values)
    distances, errors, residuals = map(torch.stack, (distances, errors, residuals))
    found = distances.max(dim=1).values < 1e-3
    assert int(found.sum()) >= 198  # the start may be all but orthogonal to an eigenvector
    assert bool((distances <= errors)[found].all())
    assert float(errors[:, -1].median()) < 0.1 * float(residuals[:, -1].median())
    assert sum(products) / 200 < 14


class Diagonal:
    """A diagonal matrix, given by its diagonal."""

    def __init__(self, values):
        self.values, self.dtype, self.device = values, values.dtype, values.device
        self.shape = (len(values), len(values))

    def __matmul__(self, block):
        return self.values[:, None] * block


@pytest.mark.parametrize(("name", "products"), [("identity", 2), ("zero", 2), ("rank one", 3)])
def test_an_invariant_space_is_noticed(name, products):
    """Rounding errors are not taken for new directions, which would go on to the end."""
    assert top_eigenvalues(with_spectrum(SPECTRA[name], dtype=torch.float32), 2).num_matvecs == products


def test_a_space_is_grown_where_it_stands():
    A = with_spectrum([50.0, 40, 30, 20, *torch.linspace(-1, 1, 200).tolist()])
    space = Krylov(A, seed=3)
    first = top_eigenvalues(space, 1, tol=0.1)
    assert first.num_matvecs == space.size == space.counted.num_matvecs
    then = top_eigenvalues(space, 4, tol=1e-6)
    assert first.num_matvecs < then.num_matvecs == space.size
    torch.testing.assert_close(then.values, top_eigenvalues(A, 4, tol=1e-6, seed=3).values, rtol=1e-9, atol=0)
    again = top_eigenvalues(space, 2)
    assert again.num_matvecs == then.num_matvecs


def test_the_opposite_end_is_not_overlooked():
    """An isolated eigenvalue settles long before the edge of a dense bulk, which here lies further out."""
    A = with_spectrum([5.1, *torch.linspace(-5.2, 1, 100).tolist()])
    for seed in range(20):
        assert float(top_eigenvalues(A, 1, seed=seed).values[0]) == pytest.approx(-5.2, rel=0.01)


def test_residuals_count_what_is_not_symmetric():
    g = torch.Generator().manual_seed(0)
    A = with_spectrum(range(20)) + 0.05 * torch.randn(20, 20, generator=g, dtype=torch.float64)
    pairs = top_eigenvalues(A, 2, tol=1e-6, max_matvecs=20)
    X = pairs.vectors
    torch.testing.assert_close((A @ X - X * pairs.values).norm(dim=0), pairs.residuals)
    assert not pairs.converged


def rounded(x):
    """Without numbers whose squares underflow."""
    return round(x, 20)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-100, 100).map(lambda x: x if abs(x) > 1e-30 else 0.0), min_size=1, max_size=15),
    st.integers(1, 15),
    st.integers(0, 5),
)
def test_any_symmetric_matrix(values, k, seed):
    check(with_spectrum(values, seed), min(k, len(values)), tol=1e-12, block_size=len(values), seed=seed)


def test_outliers_over_a_bulk_take_few_products():
    g = torch.Generator().manual_seed(0)
    bulk = 0.5 * torch.randn(400, generator=g)
    A = with_spectrum(torch.cat([torch.tensor([50.0, 40, 30, 20, 18, 15, 12, 10, 8]), bulk]), dtype=torch.float32)
    assert check(A, 1).num_matvecs <= 16
    assert check(A, 5).num_matvecs <= 40


@pytest.mark.parametrize("name", CASES)
def test_networks(name):
    model, loss_fn, batches = case(name)
    H = Hessian(model, loss_fn, batches)
    pairs = top_eigenvalues(H, 3, tol=1e-5)
    matrix = dense_hessian(model, loss_fn, batches)
    torch.testing.assert_close(pairs.values, expected(matrix, 3), rtol=1e-5, atol=1e-10)
    assert pairs.converged
    assert [list(tree) for tree in pairs.trees] == [list(H.layout.shapes)] * 3
    assert torch.equal(H.layout.flatten(pairs.vector(2)), pairs.vectors[:, 2])
    assert pairs.gradients == pytest.approx(H.gradients)
    assert pairs.route == H.route


def test_agrees_with_arpack():
    model, loss_fn, batches = case("gelu")
    H = Hessian(model, loss_fn, batches)
    arpack = LinearOperator(H.shape, lambda v: (H @ torch.from_numpy(v.ravel())).numpy(), dtype=float)
    expected = sorted(eigsh(arpack, 4, return_eigenvectors=False), key=abs, reverse=True)
    assert top_eigenvalues(H, 4, tol=1e-6).values.tolist() == pytest.approx(expected, rel=1e-8)


def test_seeds():
    A = with_spectrum(range(30))
    assert torch.equal(top_eigenvalues(A, 2, seed=1).vectors, top_eigenvalues(A, 2, seed=1).vectors)
    assert not torch.equal(top_eigenvalues(A, 2, seed=1).vectors, top_eigenvalues(A, 2, seed=2).vectors)
    state = torch.get_rng_state()
    top_eigenvalues(A)
    assert torch.equal(torch.get_rng_state(), state)


def test_says_when_the_budget_ended_first():
    A = with_spectrum(torch.linspace(0, 1, 200))
    pairs = top_eigenvalues(A, 2, tol=1e-10, max_matvecs=11)
    assert not pairs.converged
    assert pairs.num_matvecs == 11
    assert repr(pairs).endswith("11 matvecs, not converged)")
    assert top_eigenvalues(A, 2, tol=1e-10, block_size=3, max_matvecs=11).num_matvecs == 9  # whole blocks
    X = pairs.vectors
    torch.testing.assert_close((A @ X - X * pairs.values).norm(dim=0), pairs.residuals)  # honest all the same


def test_bfloat16_operators():
    A = with_spectrum([8.0, 3.0, 1.0, 0.5], dtype=torch.bfloat16)
    pairs = top_eigenvalues(A, 1, tol=0.05)
    assert pairs.vectors.dtype == torch.float32
    assert float(pairs.values[0]) == pytest.approx(8.0, rel=0.02)


def test_an_operator_that_returns_its_argument():
    class Identity:
        shape, dtype, device = (5, 5), torch.float64, torch.device("cpu")

        def __matmul__(self, block):
            return block

    pairs = top_eigenvalues(Identity(), 2)
    assert pairs.values.tolist() == pytest.approx([1.0, 1.0])
    assert pairs.vectors.norm(dim=0).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.eye(3), 4), {}, ArgumentError, "k is 4, but the operator has dimension 3"),
        ((torch.eye(3), 0), {}, ArgumentError, "k is 0"),
        ((torch.eye(3), True), {}, ArgumentTypeError, "k is True"),
        ((torch.eye(3),), {"tol": 0.0}, ArgumentError, "tol is 0"),
        ((torch.eye(3),), {"seed": 0.5}, ArgumentTypeError, "seed is 0.5"),
        ((torch.eye(3), 2), {"which": "both"}, ArgumentError, "k is 2 at each end, but the operator has dimension 3"),
        ((torch.eye(3),), {"which": "LM"}, ArgumentError, "which is 'LM'.*magnitude.*both"),
        ((torch.eye(3),), {"block_size": 0}, ArgumentError, "block_size is 0"),
        ((torch.eye(3), 2), {"max_matvecs": 1}, ArgumentError, "max_matvecs is 1.*2 eigenvalues in blocks of 1 take 2"),
        ((torch.ones(2, 3),), {}, ArgumentError, "must be square"),
        ((torch.full((2, 2), float("inf")),), {}, NonFiniteError, "nothing can be estimated"),
        ((torch.tensor([[0.0, 1.0], [-1.0, 0.0]]),), {}, ArgumentError, "not symmetric.*not reproducible"),
        ((torch.arange(36.0).view(6, 6),), {}, ArgumentError, "not symmetric"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        top_eigenvalues(*arguments, **options)


def test_matrices_have_no_names():
    with pytest.raises(ArgumentError, match=r"no named parameters.*vectors\[:, index\]"):
        top_eigenvalues(torch.eye(3)).vector(0)
