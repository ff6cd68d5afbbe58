"""Spectral densities against dense spectra: moments, shares, and bands that hold what they promise."""

import math

import pytest
import torch

from curvature_cases import case, dense_hessian
from flatmin.curvature import Hessian, top_eigenvalues
from flatmin.curvature.density import spectral_density
from flatmin.curvature.krylov import Krylov
from flatmin.curvature.results import EigenPairs
from flatmin.curvature.spectrum import SpectralDensity
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError

OUTLIERS = torch.tensor([60.0, 40.0, 25.0], dtype=torch.float64)


def matrix(values, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    A = (Q * values) @ Q.T
    return ((A + A.T) / 2).to(dtype)


def bulk(count, seed=3):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smoothed(values, x, width):
    return torch.exp(torch.distributions.Normal(values[:, None], width).log_prob(x)).mean(0)


def within(estimate, truth, errors=3.0):
    return abs(estimate.value - truth) <= errors * estimate.stderr + 1e-9 * abs(truth)


def test_every_probe_is_a_quadrature_of_its_own_measure():
    """Gauss: v'Aᵖv for p up to 2 m - 1, with v the probe."""
    A = matrix(bulk(40))
    found = spectral_density(A, num_probes=3, num_matvecs=18)
    assert found.nodes.shape == found.weights.shape == (3, 6)
    torch.testing.assert_close(found.weights.sum(1), torch.ones(3, dtype=torch.float64))
    values, Q = torch.linalg.eigh(A)
    twin = [Krylov(A, start=v[:, None]) for v in _starts(40, 3)]
    for nodes, weights, space in zip(found.nodes, found.weights, twin, strict=True):
        measure = (Q.T @ space.combine(torch.ones(1, 1, dtype=torch.float64))[:, 0]).square()
        for power in range(12):
            torch.testing.assert_close(weights @ nodes**power, measure @ values**power, rtol=1e-9, atol=1e-9)


def _starts(d, count):
    from flatmin.curvature.counted import Counted
    from flatmin.curvature.density import _STREAM
    from flatmin.curvature.draws import columns
    from flatmin.noise import Gaussian
    from flatmin.streams import Stream

    A = Counted(torch.eye(d, dtype=torch.float64))
    return columns(A, Stream(0).child(_STREAM), 0, count, Gaussian()).T


@pytest.mark.parametrize("known", [False, True])
def test_moments_and_shares(known):
    values = torch.cat([OUTLIERS, 2 + bulk(147).tanh(), torch.zeros(50, dtype=torch.float64)])
    A = matrix(values)
    pairs = top_eigenvalues(A, 3, tol=1e-9) if known else None
    found = spectral_density(A, num_probes=20, num_matvecs=600, outliers=pairs)
    assert found.num_matvecs == 600
    assert len(found.outliers) == (3 if known else 0)
    for power in range(5):
        assert within(found.moment(power), float((values**power).mean()))
    assert found.moment(0).value == pytest.approx(1.0, abs=1e-12)
    assert within(found.trace, float(values.sum()))
    samples = found.trace.samples
    assert samples is not None
    assert len(samples) == 20
    flat = found.mass_between(-1e-3, 1e-3, width=0.0)
    assert within(flat, 0.25)
    assert 0.15 < flat.value < 0.35
    assert found.mass_below(-1e-3, width=0.0).value == pytest.approx(0.0, abs=1e-12)
    exact = float(torch.special.ndtr((2.0 - values) / found.width).mean())
    assert within(found.mass_below(2.0), exact)


def test_known_outliers_are_counted_exactly():
    """Their weight is 1/d where probes would spread it by its own size, and the trace loses their variance."""
    A = matrix(torch.cat([OUTLIERS, bulk(197)]))
    space = Krylov(A)
    pairs = top_eigenvalues(space, 3, tol=1e-9)
    plain = spectral_density(A, num_probes=8, num_matvecs=160)
    for given in (pairs, space):
        found = spectral_density(A, num_probes=8, num_matvecs=160, outliers=given)
        assert found.outliers.tolist()[:3] == pytest.approx(OUTLIERS.tolist())
        assert found.trace.stderr < 0.3 * plain.trace.stderr
        share = found.mass_between(20.0, 70.0, width=0.0)
        assert share.value == pytest.approx(3 / 200, rel=1e-9)
        assert share.stderr < 1e-9
        assert float(found.nodes.max()) < 5
        torch.testing.assert_close(found.weights.sum(1), torch.full((8,), 1 - len(found.outliers) / 200).double())


def test_vectors_that_have_not_converged_are_left_to_the_probes():
    A = matrix(torch.cat([OUTLIERS, bulk(97)]))
    pairs = top_eigenvalues(A, 3, max_matvecs=4)
    assert not pairs.converged
    found = spectral_density(A, outliers=pairs)
    assert len(found.outliers) < 3
    assert within(found.trace, float(A.trace()))


def test_the_band_holds_the_smoothed_density():
    """Over 60 seeds and nine points: 95 % within the sampling error of that share, and the density is unbiased."""
    values = bulk(100)
    A, grid = matrix(values), torch.linspace(-1.6, 1.6, 9, dtype=torch.float64)
    truth = smoothed(values, grid, 0.5)
    hits, drawn = [], []
    for seed in range(60):
        found = spectral_density(A, num_probes=6, num_matvecs=72, seed=seed)
        band = found.density(grid, width=0.5)
        hits.append((band.lower <= truth) & (truth <= band.upper))
        drawn.append(band.value)
    coverage = float(torch.stack(hits).double().mean())
    assert 0.91 < coverage < 0.98
    drawn = torch.stack(drawn)
    assert float(((drawn.mean(0) - truth).abs() / (drawn.std(0) / math.sqrt(60))).max()) < 3.5


def test_the_default_width_hides_the_quadrature():
    """With the error of the probes taken out (all of one measure), what is left of m nodes is small."""
    values = torch.cat([bulk(150), torch.zeros(50, dtype=torch.float64)])
    v = torch.ones(200, 1, dtype=torch.float64)  # weighs all eigenvalues of a diagonal matrix alike
    for steps in (8, 16, 32):
        space = Krylov(torch.diag(values), start=v)
        while space.size < steps:
            space.extend()
        nodes, vectors = torch.linalg.eigh(space.restricted)
        found = SpectralDensity(
            nodes=nodes.expand(2, -1),
            weights=vectors[0].square().expand(2, -1),
            outliers=values[:0],
            dimension=200,
            num_matvecs=steps,
        )
        band = found.density()
        truth = smoothed(values, band.x, band.width)
        assert float((band.value - truth).abs().max()) < 0.06 * float(truth.max())


def test_bands():
    found = spectral_density(matrix(torch.cat([OUTLIERS, bulk(97)])), outliers=None, seed=1)
    density, cumulative = found.density(), found.cumulative()
    assert density.width == found.width
    assert bool((density.lower <= density.value).all() and (density.value <= density.upper).all())
    assert float(density.lower.min()) >= 0
    assert float(torch.trapezoid(density.value, density.x)) == pytest.approx(1.0, abs=1e-3)
    assert bool((cumulative.value.diff() >= -1e-12).all())
    assert cumulative.value[[0, -1]].tolist() == pytest.approx([0.0, 1.0], abs=1e-3)
    wider, narrower = found.density(confidence=0.99), found.density(confidence=0.5)
    assert bool((wider.upper >= narrower.upper).all())
    below = found.mass_below(0.3)
    assert below.value == pytest.approx(float(found.cumulative(torch.tensor([0.3])).value))


def test_the_grid_shows_outliers():
    A = matrix(torch.cat([OUTLIERS, bulk(97)]))
    found = spectral_density(A, outliers=top_eigenvalues(A, 3))
    band = found.density()
    near = (band.x[:, None] - OUTLIERS).abs().min(0).values
    assert float(near.max()) < 0.01 * found.width
    peak = 1 / (100 * math.sqrt(2 * math.pi) * found.width)
    assert float(band.value[(band.x - 60).abs().argmin()]) == pytest.approx(peak, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_one_eigenvalue(value, dtype):
    """Every space is invariant at once."""
    found = spectral_density(value * torch.eye(20, dtype=dtype), num_matvecs=64)
    assert found.num_matvecs == 8
    assert found.trace.value == pytest.approx(20 * value, rel=1e-5)
    assert found.mass_between(value - 1e-4, value + 1e-4, width=0.0).value == pytest.approx(1.0)
    assert bool(found.density().value.isfinite().all())


def test_nothing_but_outliers():
    A = torch.diag(torch.tensor([3.0, 2.0, -1.0]))
    found = spectral_density(A, outliers=top_eigenvalues(A, 3))
    assert found.num_matvecs == 0
    assert found.trace.value == pytest.approx(4.0, rel=1e-5)
    assert found.trace.stderr == 0.0
    assert found.mass_below(0.0, width=0.0).value == pytest.approx(1 / 3)
    assert bool(found.density().value.isfinite().all())


@pytest.mark.parametrize("name", ["tanh", "unused", "conv, batch-norm, dropout"])
def test_networks(name):
    model, loss_fn, batches = case(name)
    H = Hessian(model, loss_fn, batches)
    values = torch.linalg.eigvalsh(dense_hessian(model, loss_fn, batches))
    pairs, before = top_eigenvalues(H, 3), H.gradients
    found = spectral_density(H, num_probes=12, num_matvecs=144, outliers=pairs)
    assert within(found.trace, float(values.sum()), errors=4)
    assert within(found.moment(2), float(values.square().mean()), errors=4)
    assert found.gradients == pytest.approx(H.gradients - before)
    assert found.route == H.route
    assert repr(found).startswith(f"SpectralDensity({len(values)} eigenvalues in [")


def test_float32_and_bfloat16():
    values = bulk(60)
    for dtype in (torch.float32, torch.bfloat16):
        found = spectral_density(matrix(values, dtype=dtype), num_probes=10, num_matvecs=200)
        assert within(found.trace, float(values.sum()), errors=4)
        assert found.nodes.dtype == torch.float64


def test_seeds():
    A = matrix(bulk(30))
    state = torch.get_rng_state()
    assert torch.equal(spectral_density(A, seed=1).nodes, spectral_density(A, seed=1).nodes)
    assert not torch.equal(spectral_density(A, seed=1).nodes, spectral_density(A, seed=2).nodes)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("operator", "options", "error", "message"),
    [
        (torch.eye(3), {"num_probes": 1}, ArgumentError, "num_probes is 1.*no standard error"),
        (torch.eye(3), {"num_matvecs": 10}, ArgumentError, "num_matvecs is 10.*Each probe takes its share"),
        (torch.eye(3), {"seed": -1}, ArgumentError, "seed is -1"),
        (torch.ones(2, 3), {}, ArgumentError, "must be square"),
        (torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), {}, ArgumentError, "not symmetric"),
        (torch.full((3, 3), math.nan), {}, NonFiniteError, "nothing can be estimated"),
        ("A", {}, ArgumentTypeError, "operator"),
        (torch.eye(4), {"outliers": torch.ones(4)}, ArgumentTypeError, "outliers is a Tensor.*as top_eigenvalues"),
        (torch.eye(4), {"outliers": top_eigenvalues(torch.eye(3))}, ArgumentError, "vectors of 3 coordinates.*4"),
    ],
)
def test_messages(operator, options, error, message):
    with pytest.raises(error, match=message):
        spectral_density(operator, **options)


def test_messages_of_results():
    found = spectral_density(torch.eye(3))
    with pytest.raises(ArgumentError, match="width is 0, but a density of points is none"):
        found.density(width=0.0)
    with pytest.raises(ArgumentError, match="width is -1"):
        found.mass_below(0.0, width=-1.0)
    with pytest.raises(ArgumentError, match="confidence is 95"):
        found.cumulative(confidence=95)
    with pytest.raises(ArgumentError, match="order is -1"):
        found.moment(-1)
    assert isinstance(top_eigenvalues(torch.eye(3)), EigenPairs)
