"""The Krylov space and its basis: orthonormal, true to the operator, and of use as a projector."""

import pytest
import torch

from flatmin.curvature.basis import Basis, inner, norms
from flatmin.curvature.eigenvalues import known_eigenpairs
from flatmin.curvature.krylov import Krylov
from flatmin.curvature.ritz import Ritz
from flatmin.errors import ArgumentError

SPECTRA = {
    "geometric": [1.5**-i for i in range(60)],
    "repeated": [3.0] * 20 + [1.0] * 20 + [0.0] * 20,
    "outliers": [100.0, 50.0, -30.0, *torch.linspace(-1, 1, 57).tolist()],
    "graded": [10.0 ** (12 - i) for i in range(24)],
}


def with_spectrum(values, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    values = torch.as_tensor(values, dtype=torch.float64)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    A = (Q * values) @ Q.T
    return ((A + A.T) / 2).to(dtype)


def grown(A, size, **options):
    space = Krylov(A, **options)
    while space.size < size:
        space.restart(options.get("width", 1))
        space.extend()
    return space


def basis_of(space):
    return space.combine(torch.eye(space.size, dtype=torch.float64)).double()


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_basis_is_orthonormal_and_the_restriction_true(name, dtype, width):
    A = with_spectrum(SPECTRA[name], dtype)
    space = grown(A, 20, width=width)
    V = basis_of(space)
    eps, scale = torch.finfo(dtype).eps, float(torch.linalg.matrix_norm(A.double(), 2))
    torch.testing.assert_close(V.T @ V, torch.eye(space.size, dtype=torch.float64), rtol=0, atol=30 * eps)
    torch.testing.assert_close(V.T @ A.double() @ V, space.restricted, rtol=0, atol=30 * eps * scale)
    Q = A.double() @ V - V @ space.restricted
    torch.testing.assert_close(Q.norm(), space.coupling.norm(), rtol=1e-3, atol=50 * eps * scale)


def test_residuals_are_those_of_the_vectors():
    A = with_spectrum(SPECTRA["outliers"])
    space = grown(A, 12)
    ritz = Ritz.of(space)
    X = space.combine(ritz.coefficients)
    torch.testing.assert_close((A @ X - X * ritz.values).norm(dim=0), ritz.residuals)


def test_one_value_alone_has_no_gap():
    ritz = Ritz.of(Krylov(with_spectrum(SPECTRA["outliers"])))
    assert ritz.gaps.tolist() == [0.0]
    torch.testing.assert_close(ritz.errors, ritz.residuals + ritz.rounding)


def test_it_removes_what_lies_within():
    A = with_spectrum(SPECTRA["outliers"])
    space = grown(A, 10)
    V = basis_of(space)
    block = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for given in (block.clone(), block.T.contiguous().T):
        coefficients = space.remove(given)
        torch.testing.assert_close(coefficients, V.T @ block)
        torch.testing.assert_close(given, block - V @ (V.T @ block))


def test_it_keeps_to_the_complement_of_what_is_avoided():
    values = torch.tensor(SPECTRA["outliers"], dtype=torch.float64)
    A = with_spectrum(values)
    _, Q = torch.linalg.eigh(A)
    avoided = Q[:, [-1, -2, 0]]
    space = grown(A, 57, avoid=avoided)
    assert space.capacity == 57
    V = basis_of(space)
    assert float((avoided.T @ V).abs().max()) < 1e-12
    torch.testing.assert_close(torch.linalg.eigvalsh(space.restricted), values[3:].sort().values)
    space.restart()
    assert space.num_next == 0
    block = torch.ones(60, 1, dtype=torch.float64)
    space.remove(block)
    assert float(block.norm()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_are_no_directions_where_the_norm_is_known(dtype):
    """Nothing is left of a matrix of rank two beside its eigenvectors: no space to grow, and nothing asymmetric."""
    A = with_spectrum([1e3, -40.0, *[0.0] * 58], dtype)
    _, Q = torch.linalg.eigh(A.double())
    space = Krylov(A, avoid=Q[:, [0, -1]], norm=1e3)
    assert (space.size, space.num_next) == (1, 0)
    assert float(space.restricted.abs()) < 1e3 * torch.finfo(dtype).eps
    while space.size < 20:  # a refusal here would come from rounding errors alone
        space.restart(3)
        space.extend()
    with pytest.raises(ArgumentError, match="not symmetric"):
        Krylov(torch.triu(torch.ones(60, 60, dtype=dtype), 1) * 1e6, width=8, avoid=Q[:, [0, -1]], norm=1e3)


def test_a_given_start_is_the_first_vector():
    A = with_spectrum(SPECTRA["geometric"])
    v = torch.arange(60.0, dtype=torch.float64)[:, None]
    space = Krylov(A, start=v)
    torch.testing.assert_close(basis_of(space), v / v.norm())
    assert v[1] == 1.0  # and was not touched


def test_an_invariant_space_goes_on_where_it_is_told_to():
    A = with_spectrum(SPECTRA["repeated"], torch.float32)
    space = Krylov(A)
    while space.num_next:
        space.extend()
    assert space.size == 3
    assert space.latest.shape == (3, 3)
    space.restart()
    assert space.num_next == 1
    space.extend()
    assert space.latest.shape == (1, 1)
    while space.size < 60:
        space.restart(2)
        space.extend()
    values = torch.linalg.eigvalsh(space.restricted)
    torch.testing.assert_close(values, torch.tensor(SPECTRA["repeated"]).double().sort().values, rtol=0, atol=1e-5)
    space.restart()
    assert space.num_next == 0


def test_what_a_space_knows():
    A = with_spectrum(SPECTRA["outliers"])
    space = Krylov(A)
    assert len(known_eigenpairs(space)) == 0
    assert known_eigenpairs(space).vectors.shape == (60, 0)
    while space.size < 14:
        space.extend()
    assert known_eigenpairs(space).values.tolist()[:3] == pytest.approx([100.0, 50.0, -30.0])


def test_long_sums_are_taken_in_double():
    """A float32 sum of so many equal squares is off by a percent; what one pass leaves, the next one takes."""
    rows = torch.full((1, 2_000_003), 1.1)
    assert float(norms(rows)) == pytest.approx(1.1 * 2_000_003**0.5, rel=1e-7)
    assert float(inner(rows, rows)) == pytest.approx(1.1**2 * 2_000_003, rel=1e-4)
    basis = Basis(2_000_003, torch.float32, torch.device("cpu"))
    basis.append(rows / norms(rows).float())
    other = rows + 0.01 * torch.randn(1, 2_000_003, generator=torch.Generator().manual_seed(0))
    expected = float((other.double() @ rows.double().T) / norms(rows))
    assert float(basis.remove(other)) == pytest.approx(expected, rel=2e-7)
    assert abs(float(inner(basis.combine(torch.ones(1, 1)), other) / norms(other))) < 1e-6
