"""The perturbation gap against its closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import case, data, dense_hessian, mean_loss, mlp
from flatmin.errors import ArgumentError, ArgumentTypeError, DataError, NonFiniteError
from flatmin.measures import perturbation_gap
from flatmin.noise import LAWS, Rademacher


class Quadratic(nn.Module):
    """f(w) = w'Aw / 2 + b'w, with a slope that a single point would drown in."""

    def __init__(self, d=8, slope=30.0):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        A = torch.randn(d, d, generator=g, dtype=torch.float64)
        self.register_buffer("A", A + A.T + 4 * torch.eye(d))
        self.register_buffer("b", torch.full((d,), slope, dtype=torch.float64))
        self.w = nn.Parameter(torch.randn(d, generator=g, dtype=torch.float64))

    def forward(self, _):
        return self.w @ self.A @ self.w / 2 + self.b @ self.w


ONE = [(torch.zeros(1), torch.zeros(1))]


def value(output, _):
    return output


SIGMA = 0.05


def test_the_variance_of_a_pair_is_that_of_theory():
    """½ σ⁴ ‖H‖_F² for Gaussian noise, whatever the slope."""
    model = Quadratic()
    gap = perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=4000)
    expected = SIGMA**4 / 2 * float(model.A.square().sum())
    assert float(gap.samples.var()) == pytest.approx(expected, rel=0.1)
    assert gap.stderr == pytest.approx(math.sqrt(expected / 4000), rel=0.05)
    assert abs(gap.value - SIGMA**2 / 2 * float(model.A.trace())) < 4 * gap.stderr


@pytest.mark.parametrize("law", LAWS)
def test_a_quadratic_has_the_gap_of_its_trace(law):
    model = Quadratic()
    gap = perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=600, noise=law)
    low, high = gap.trace.interval(0.999)
    assert low <= float(model.A.trace()) <= high
    assert gap.clean_loss == pytest.approx(model(None).item())
    assert gap.smoothed_loss == gap.clean_loss + gap.value
    assert gap.trace.value == pytest.approx(2 * gap.value / SIGMA**2)
    assert gap.trace.stderr == pytest.approx(2 * gap.stderr / SIGMA**2)
    assert gap.trace.num_matvecs == gap.num_samples == 600


def test_signs_are_exact_on_a_diagonal():
    model = Quadratic()
    model.A = torch.diag(torch.arange(8.0, dtype=torch.float64))
    gap = perturbation_gap(model, value, ONE, sigma=SIGMA, num_samples=3, noise=Rademacher())
    assert gap.trace.value == pytest.approx(28.0, rel=1e-9)
    assert gap.stderr < 1e-12


@pytest.mark.parametrize("name", ["gelu", "tanh", "ragged", "conv, batch-norm, dropout", "tied", "frozen", "mappings"])
def test_smooth_networks_have_twice_the_gap_over_sigma_squared_as_trace(name):
    model, loss_fn, batches = case(name)
    exact = float(dense_hessian(model, loss_fn, batches).trace())
    smoothed = perturbation_gap(model, loss_fn, batches, sigma=1e-3, num_samples=200).trace
    assert abs(smoothed.value - exact) < 4 * smoothed.stderr
    assert smoothed.stderr < 0.5 * abs(exact)


def test_is_the_mean_of_the_loss_at_displaced_weights():
    """The literal text: F(W) - f(W) with noise added to a copy of the weights."""
    model, loss_fn, batches = case("ragged")
    sigma, weights = 0.3, {n: p.detach() for n, p in model.named_parameters()}
    g = torch.Generator().manual_seed(7)
    clean, rises = mean_loss(model, loss_fn, batches, weights), []
    for _ in range(400):
        noise = {n: sigma * torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in weights.items()}
        rises.append(mean_loss(model, loss_fn, batches, {n: p + noise[n] for n, p in weights.items()}) - clean)
    gap = perturbation_gap(model, loss_fn, batches, sigma=sigma, num_samples=400)
    literal = torch.stack(rises)
    assert gap.clean_loss == pytest.approx(clean.item(), rel=1e-12)
    assert abs(gap.value - literal.mean().item()) < 4 * math.hypot(gap.stderr, literal.std().item() / 20)


def test_seeds():
    model, loss_fn, batches = case("gelu")

    def gap(seed, n=10):
        return perturbation_gap(model, loss_fn, batches, sigma=0.1, num_samples=n, seed=seed)

    assert torch.equal(gap(1).samples, gap(1).samples)
    assert not torch.equal(gap(1).samples, gap(2).samples)
    assert torch.equal(gap(1, 20).samples[:10], gap(1).samples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype):
    exact = perturbation_gap(*case("gelu"), sigma=0.2, num_samples=100)
    low = perturbation_gap(*case("gelu", dtype), sigma=0.2, num_samples=100)
    assert low.value == pytest.approx(exact.value, abs=4 * math.hypot(low.stderr, exact.stderr))


def test_prints():
    gap = perturbation_gap(Quadratic(), value, ONE, sigma=SIGMA, num_samples=10)
    assert repr(gap).startswith("GapEstimate(0.0")
    assert repr(gap).endswith("sigma=0.05, 10 pairs)")


class Cliff(nn.Module):
    """Finite at the weights and nowhere else."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, _):
        return torch.where(self.w.abs().sum() > 0, torch.inf, self.w.sum())


def test_a_loss_that_overflows_under_noise():
    model = Cliff()
    with pytest.raises(NonFiniteError, match=r"displaced by noise of sigma=0\.1, though it is 0 at.*smaller"):
        perturbation_gap(model, value, ONE, sigma=0.1)
    assert model.w.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sigma": 0.0}, ArgumentError, "sigma is 0, but it must be above 0"),
        ({"sigma": -0.1}, ArgumentError, "sigma is -0.1"),
        ({"sigma": "1"}, ArgumentTypeError, "sigma is '1'"),
        ({"sigma": 1e-200}, ArgumentError, "sigma is 1e-200, whose square"),
        ({"parameters": 3}, ArgumentTypeError, "parameters is 3, but patterns"),
        ({"parameters": [3]}, ArgumentTypeError, r"parameters is \[3\]"),
        ({"num_samples": 1}, ArgumentError, "num_samples is 1.*one has no standard error"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
        ({"noise": "gausian"}, ArgumentError, "Did you mean 'gaussian'"),
        ({"mode": "train"}, ArgumentError, "mode is 'train'"),
        ({"batches": []}, DataError, "no batch"),
        ({"batches": iter(data())}, ArgumentTypeError, "read only once"),
        ({"model": mlp().requires_grad_(requires_grad=False)}, ArgumentError, "nothing to measure"),
        ({"loss_fn": lambda o, t: o}, ArgumentTypeError, r"shape \(6, 3\)"),
    ],
)
def test_messages(changes, error, message):
    given = {"model": mlp().double(), "loss_fn": functional.cross_entropy, "batches": data(), "sigma": 0.1} | changes
    with pytest.raises(error, match=message):
        perturbation_gap(given.pop("model"), given.pop("loss_fn"), given.pop("batches"), **given)


def test_weights_that_are_not_finite():
    model = mlp().double()
    model.a.bias.data[1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"'a.bias' holds NaN or infinity"):
        perturbation_gap(model, functional.cross_entropy, data(), sigma=0.1)


def test_autocast_around_the_measurement_does_not_hide_the_displacement():
    model, batches = nn.Linear(4, 3), [(torch.ones(5, 4), torch.zeros(5, dtype=torch.long))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gap = perturbation_gap(model, functional.cross_entropy, batches, sigma=0.5, num_samples=8)
    assert len(set(gap.samples.tolist())) > 1
