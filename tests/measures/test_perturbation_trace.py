"""The smoothed trace against closed forms, and what it tells of kinks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import case, data, dense_hessian, everything, mlp
from flatmin.errors import ArgumentError, ArgumentTypeError, DataError
from flatmin.measures import perturbation_gap
from flatmin.measures.perturbation_trace import perturbation_trace

SMOOTH = ["tanh", "gelu", "ragged", "conv, batch-norm, dropout", "tied", "frozen", "mappings"]


class Quartic(nn.Module):
    """f(w) = Σ aᵢ wᵢ²/2 + w'w · w'w / 24 at w = 0: by signs of size σ, 2 (rise) / σ² = Σ aᵢ + σ² d²/12 exactly."""

    def __init__(self, d=6):
        super().__init__()
        self.register_buffer("a", torch.arange(1.0, d + 1, dtype=torch.float64))
        self.w = nn.Parameter(torch.zeros(d, dtype=torch.float64))

    def forward(self, _):
        return (self.a * self.w.square()).sum() / 2 + self.w.square().sum() ** 2 / 24


ONE = [(torch.zeros(1), torch.zeros(1))]


def value(output, _):
    return output


def test_closed_form_at_sigma_at_its_half_and_in_the_limit():
    estimate = perturbation_trace(Quartic(), value, ONE, sigma=0.5, num_samples=3, noise="rademacher")
    assert estimate.value == pytest.approx(21 + 0.25 * 36 / 12)
    assert estimate.at_half.value == pytest.approx(21 + 0.0625 * 36 / 12)
    assert estimate.limit.value == pytest.approx(21)
    assert estimate.exponent == pytest.approx(2)
    assert estimate.kinks is False
    assert max(estimate.stderr, estimate.at_half.stderr, estimate.limit.stderr) < 1e-10


@pytest.mark.parametrize("name", SMOOTH)
def test_the_limit_is_the_trace_of_smooth_networks(name):
    model, loss_fn, batches = case(name)
    exact = float(dense_hessian(model, loss_fn, batches).trace())
    estimate = perturbation_trace(model, loss_fn, batches, sigma=0.02, num_samples=200, noise="rademacher")
    assert abs(estimate.limit.value - exact) < 4 * estimate.limit.stderr
    assert estimate.kinks is False
    assert estimate.exponent == pytest.approx(2, abs=0.3)


def test_patterns_move_their_parameters_alone():
    model, loss_fn, batches = case("tanh")
    names = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    block = dense_hessian(model, loss_fn, batches)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    rows = torch.cat([torch.full((size,), name in names) for name, size in sizes.items()])
    options = {"sigma": 0.02, "num_samples": 200, "noise": "rademacher", "parameters": "*weight"}
    estimate = perturbation_trace(model, loss_fn, batches, **options)
    assert abs(estimate.limit.value - float(block.diagonal()[rows].sum())) < 4 * estimate.limit.stderr
    gap = perturbation_gap(model, loss_fn, batches, **options)
    torch.testing.assert_close(estimate.samples, gap.trace.samples)
    with pytest.raises(ArgumentError, match="'embedding' fits no trainable parameter"):
        perturbation_trace(model, loss_fn, batches, sigma=0.02, parameters=["*weight", "embedding"])


def test_is_the_gap_in_other_units():
    model, loss_fn, batches = case("ragged")
    estimate = perturbation_trace(model, loss_fn, batches, sigma=0.1, num_samples=20, seed=3)
    gap = perturbation_gap(model, loss_fn, batches, sigma=0.1, num_samples=20, seed=3)
    torch.testing.assert_close(estimate.samples, gap.trace.samples)
    assert estimate.clean_loss == gap.clean_loss
    half = perturbation_gap(model, loss_fn, batches, sigma=0.05, num_samples=16, seed=3).trace.samples
    drop = (gap.trace.samples[:16] - half).mean()
    assert estimate.at_half.value == pytest.approx(float(estimate.value - drop))


def network(act, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), act(), nn.Linear(64, 64), act(), nn.Linear(64, 5)).to(dtype)
        return model, functional.cross_entropy, [(torch.randn(500, 20).to(dtype), torch.randint(0, 5, (500,)))]


@pytest.mark.parametrize("sigma", [0.03, 0.01, 0.003])
@pytest.mark.parametrize(("act", "kinks"), [(nn.ReLU, True), (nn.LeakyReLU, True), (nn.GELU, False), (nn.Tanh, False)])
def test_kinks_are_told_from_smooth_bends(act, kinks, sigma):
    estimate = perturbation_trace(*network(act), sigma=sigma, num_samples=16, noise="rademacher")
    assert estimate.kinks is kinks
    assert estimate.exponent == pytest.approx(-0.5 if kinks else 2, abs=0.8)


def test_kinks_are_curvature_that_second_derivatives_miss():
    model = nn.Sequential(nn.Linear(1, 400), nn.ReLU(), nn.Linear(400, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.linspace(-1, 1, 400))
        model[2].weight.fill_(1 / 400)
    for parameter in (model[0].weight, model[2].weight):
        parameter.requires_grad_(requires_grad=False)
    batches = [(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())]
    # f(b) = Σ relu(bᵢ)/400: linear pieces, E relu(b + U) = smoothed; its trace by the density of bᵢ at 0 is 400 / 2.
    estimate = perturbation_trace(model, lambda z, _: 400 * z.sum(), batches, sigma=0.1, num_samples=400)
    assert estimate.kinks
    assert abs(estimate.value - 200) < 4 * estimate.stderr
    exact = float(dense_hessian(model, lambda z, _: 400 * z.sum(), batches).trace())
    assert exact == 0


def test_rounding_and_too_much_noise_leave_it_undecided():
    rounded = perturbation_trace(*network(nn.GELU, torch.float32), sigma=1e-4, num_samples=16, noise="rademacher")
    far = perturbation_trace(*network(nn.GELU), sigma=0.1, num_samples=16, noise="rademacher")
    assert rounded.kinks is None
    assert rounded.exponent == pytest.approx(-2, abs=0.7)
    assert far.kinks is None
    assert "undecided" in repr(far)


def test_stops_by_its_standard_error():
    model, loss_fn, batches = case("ragged")
    exact = float(dense_hessian(model, loss_fn, batches).trace())
    reached = [perturbation_trace(model, loss_fn, batches, sigma=1e-3, rtol=0.1, seed=s) for s in range(6)]
    for estimate in reached:
        assert estimate.converged
        assert 32 <= estimate.num_matvecs < 1000
        assert estimate.stderr <= 0.1 * abs(estimate.value)
    assert sum(((e.value - exact) / e.stderr) ** 2 for e in reached) < 22.5  # 99.9 % of χ² with 6 degrees
    short = perturbation_trace(model, loss_fn, batches, sigma=1e-3, rtol=1e-3, num_samples=40)
    assert not short.converged
    assert short.num_matvecs == 40
    assert repr(short).endswith("not converged)")


def test_cost_and_print():
    estimate = perturbation_trace(*case("tanh"), sigma=0.01, num_samples=10)
    assert estimate.gradients == pytest.approx((1 + 2 * 10 + 4 * 10) / 3)
    assert repr(estimate).startswith("PerturbationTrace(")
    assert "at sigma=0.01" in repr(estimate)
    assert "smooth; 10 pairs = 20.3 gradients" in repr(estimate)


def test_nothing_is_left_changed():
    model, loss_fn, batches = case("conv, batch-norm, dropout", torch.bfloat16)
    model.train()
    before = everything(model)
    perturbation_trace(model, loss_fn, batches, sigma=0.1, num_samples=2, mode="current")
    assert everything(model) == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sigma": 0.0}, ArgumentError, "sigma is 0, but it must be above 0"),
        ({"sigma": 1e200}, ArgumentError, "sigma is 1e\\+200, whose square"),
        ({"num_samples": 1}, ArgumentError, "num_samples is 1.*one has no standard error"),
        ({"rtol": 0.0}, ArgumentError, "rtol is 0"),
        ({"atol": "1"}, ArgumentTypeError, "atol is '1'"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
        ({"noise": "gausian"}, ArgumentError, "Did you mean 'gaussian'"),
        ({"batches": []}, DataError, "no batch"),
    ],
)
def test_messages(changes, error, message):
    given = {"model": mlp().double(), "loss_fn": functional.cross_entropy, "batches": data(), "sigma": 0.1} | changes
    with pytest.raises(error, match=message):
        perturbation_trace(given.pop("model"), given.pop("loss_fn"), given.pop("batches"), **given)


def test_noise_below_the_rounding_of_the_weights_tells_nothing_of_kinks():
    estimate = perturbation_trace(
        mlp(), functional.cross_entropy, data(dtype=torch.float32), sigma=1e-12, num_samples=4
    )
    assert estimate.kinks is None


def test_exponent_of_an_exact_quadratic_is_not_a_number():
    model = nn.Linear(3, 1, bias=False).double()
    batches = [(torch.eye(3).double(), torch.zeros(3, 1).double())]
    estimate = perturbation_trace(model, functional.mse_loss, batches, sigma=0.25, num_samples=4, noise="rademacher")
    assert estimate.kinks is False
    assert math.isnan(estimate.exponent) or estimate.exponent < 2
