"""The trace of networks: the exact part, what is left for probes, forward passes, and what auto makes of them."""

import math

import pytest
import torch
from torch import nn

from curvature_cases import CASES, case, dense_hessian
from flatmin.curvature import Hessian
from flatmin.curvature.ghost import ggn_trace
from flatmin.curvature.operators import GGN
from flatmin.curvature.operators.forward_only import ForwardOnlyHessian
from flatmin.curvature.trace import trace
from flatmin.curvature.trace.control import Remainder
from flatmin.errors import ArgumentTypeError

PIECEWISE = ["relu", "constant gradient"]


def perceptron(activation, features=8, width=24, classes=4, examples=60):
    """A network whose trace takes more than a few products."""
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(features, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, classes)
        ).double()
    x = torch.randn(examples, features, generator=g, dtype=torch.float64)
    y = torch.randint(0, classes, (examples,), generator=g)
    return model, nn.functional.cross_entropy, list(zip(x.split(25), y.split(25)))


@pytest.fixture(scope="module")
def smooth():
    problem = perceptron(nn.Tanh)
    return problem, float(dense_hessian(*problem).trace())


@pytest.mark.parametrize("name", PIECEWISE)
@pytest.mark.parametrize("options", [{}, {"rtol": 0.01}, {"num_matvecs": 4}, {"method": "control", "num_matvecs": 2}])
def test_piecewise_linear_networks_have_it_exactly(name, options):
    estimate = trace(Hessian(*case(name)), **options)
    assert estimate.value == pytest.approx(float(dense_hessian(*case(name)).trace()), abs=1e-9)
    assert (estimate.stderr, estimate.samples, estimate.method, estimate.converged) == (0.0, None, "exact", True)
    assert "piecewise linear in every parameter" in estimate.reason
    assert 0 < estimate.gradients < 5
    assert estimate.interval() == (estimate.value, estimate.value)


def test_exact_trace_and_eigenvalues_together():
    estimate = trace(Hessian(*case("relu")), k=2)
    matrix = dense_hessian(*case("relu"))
    assert estimate.method == "exact"
    assert estimate.value == pytest.approx(float(matrix.trace()), rel=1e-9)
    largest = torch.linalg.eigvalsh(matrix).abs().sort(descending=True).values[:2]
    torch.testing.assert_close(estimate.eigenvalues.values.abs(), largest, rtol=1e-3, atol=0)
    assert estimate.num_matvecs > estimate.eigenvalues.num_matvecs


@pytest.mark.parametrize("name", [name for name in CASES if name not in PIECEWISE])
@pytest.mark.parametrize("options", [{"rtol": 0.1}, {"num_matvecs": 12}, {"num_matvecs": 12, "method": "control"}])
def test_networks(name, options):
    estimate = trace(Hessian(*case(name)), seed=2, **options)
    low, high = estimate.interval(0.999)
    assert low - 1e-9 <= float(dense_hessian(*case(name)).trace()) <= high + 1e-9


@pytest.mark.parametrize("name", ["tanh", "tied", "scalar parameter", "mappings", "frozen"])
def test_what_the_exact_part_leaves(name):
    H = Hessian(*case(name))
    found = ggn_trace(H)
    rest = Remainder(H, found)
    whole, gauss_newton = (A @ torch.eye(H.shape[0], dtype=H.dtype) for A in (H, H.related(GGN)))
    places = [i for n in (*found.curved, *found.uncovered) for i in range(*H.layout.slices[n].indices(H.shape[0]))]
    curved = sum(H.layout.shapes[name].numel() for name in found.curved)
    expected = whole[places][:, places]
    expected[:curved, :curved] -= gauss_newton[places][:, places][:curved, :curved]
    expected[:curved, curved:] = expected[curved:, :curved] = 0  # not needed for the trace, nor taken
    torch.testing.assert_close(rest @ torch.eye(len(places), dtype=H.dtype), expected)
    assert found.value + float(expected.trace()) == pytest.approx(float(whole.trace()), rel=1e-9)


def test_the_control_variate_has_the_variance_of_what_it_leaves(smooth):
    (model, loss_fn, batches), truth = smooth
    H = Hessian(model, loss_fn, batches)
    found = ggn_trace(H)
    rest = Remainder(H, found) @ torch.eye(Remainder(H, found).shape[0], dtype=H.dtype)
    estimate = trace(H, 16, rtol=10.0, method="control")
    assert estimate.method == "control variate"
    n = estimate.samples.numel()
    theory = 2 * float(rest.square().sum() - rest.diagonal().square().sum())
    assert estimate.stderr == pytest.approx(math.sqrt(theory / n), rel=0.8)
    assert abs(estimate.value - truth) < 4 * math.sqrt(theory / n)
    assert estimate.stderr < trace(H, n, method="hutchinson").stderr / 2


def test_auto_takes_the_cheap_exact_part_at_once(smooth):
    (model, loss_fn, batches), truth = smooth
    estimate = trace(Hessian(model, loss_fn, batches), rtol=0.05)
    assert estimate.method == "control variate"
    assert "the Gauss-Newton part costs 2.3 gradients, less than eight products" in estimate.reason
    assert estimate.converged
    assert abs(estimate.value - truth) < 4 * estimate.stderr
    assert estimate.stderr <= 0.05 * abs(estimate.value)
    plain = trace(Hessian(model, loss_fn, batches), rtol=0.05, method="hutchinson")
    assert estimate.gradients < plain.gradients / 4


def test_forward_passes_take_the_place_of_products_where_they_agree(smooth):
    (model, loss_fn, batches), truth = smooth
    estimate = trace(Hessian(model, loss_fn, batches), 60, k=1, seed=1)
    assert "forward passes agree with products" in estimate.reason
    assert "differences of outputs" in estimate.route
    assert abs(estimate.value - truth) < 4 * estimate.stderr
    relu = perceptron(nn.ReLU)
    H = Hessian(relu[0].float(), relu[1], [(x.float(), y) for x, y in relu[2]])
    kinked = trace(H, 40, method="forward")
    assert kinked.method == "forward"
    assert kinked.num_matvecs == 40
    assert kinked.gradients < 0.5 * 80
    assert "relative error of" in kinked.reason


def test_forward_passes_alone(smooth):
    (model, loss_fn, batches), truth = smooth
    H = Hessian(model, loss_fn, batches)
    by_passes, by_products = (trace(H, 60, method=m, seed=3) for m in ("forward", "hutchinson"))
    torch.testing.assert_close(by_passes.samples, by_products.samples, rtol=1e-4, atol=1e-4)
    assert abs(by_passes.value - truth) < 4 * by_passes.stderr
    assert by_passes.gradients < by_products.gradients / 2
    F = H.related(ForwardOnlyHessian)
    assert trace(F, 60, method="forward", seed=3).value == pytest.approx(by_passes.value, rel=1e-9)


def test_a_hundred_classes_are_taken_exactly_where_nothing_else_is_asked():
    problem = perceptron(nn.ReLU, width=12, classes=100)
    estimate = trace(Hessian(*problem), 100)
    assert (estimate.method, estimate.stderr, estimate.num_matvecs) == ("exact", 0.0, 99)
    assert estimate.value == pytest.approx(float(dense_hessian(*problem).trace()), rel=1e-9)


@pytest.mark.parametrize(("activation", "k"), [(nn.Tanh, 2), (nn.ReLU, 0)])
def test_of_many_classes_the_gauss_newton_part_is_sampled(activation, k):
    problem = perceptron(activation, width=4, classes=400)
    matrix = dense_hessian(*problem)
    estimate = trace(Hessian(*problem), rtol=0.01, k=k, seed=1)
    assert estimate.converged
    assert abs(estimate.value - float(matrix.trace())) < 4 * estimate.stderr
    assert 0 < estimate.stderr <= 0.01 * estimate.value
    if activation is nn.ReLU:
        assert (estimate.method, estimate.samples) == ("ggn", None)
    else:
        assert estimate.method == "control variate"
        assert "the Gauss-Newton part is expected to cost 16 gradients" in estimate.reason
    if k:
        largest = torch.linalg.eigvalsh(matrix).abs().sort(descending=True).values[:k]
        torch.testing.assert_close(estimate.eigenvalues.values.abs(), largest, rtol=1e-3, atol=0)


def test_what_the_exact_part_leaves_by_forward_passes(smooth):
    H = Hessian(*case("tied"))
    rest = Remainder(H, ggn_trace(H))
    block = torch.eye(rest.shape[0], dtype=H.dtype)
    torch.testing.assert_close(rest.forward_only().quadratic_forms(block), (rest @ block).diagonal(), rtol=0, atol=1e-5)
    torch.testing.assert_close(rest.quadratic_forms(block), (rest @ block).diagonal())
    (model, loss_fn, batches), truth = smooth
    estimate = trace(Hessian(model, loss_fn, batches), rtol=0.03, seed=1)
    assert estimate.method == "control variate"
    assert "forward passes agree with products" in estimate.reason
    assert estimate.converged
    assert abs(estimate.value - truth) < 4 * estimate.stderr


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12, 20, 40])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_no_more_is_spent_than_the_products_would_cost(n, activation):
    model, loss_fn, batches = perceptron(activation)
    H = Hessian(model, loss_fn, batches)
    estimate = trace(H, n)
    products = trace(Hessian(model, loss_fn, batches), n, method="hutchinson")
    assert estimate.gradients <= products.gradients + 1 / 3  # a look at the first batch
    assert estimate.gradients == pytest.approx(H.gradients)
    assert math.isfinite(estimate.stderr)


def test_leaves_nothing_behind(smooth):
    from curvature_cases import everything

    (model, loss_fn, batches), _ = smooth
    before = everything(model)
    trace(Hessian(model, loss_fn, batches), 20)
    trace(Hessian(model, loss_fn, batches), 20, method="forward")
    assert everything(model) == before


def test_other_operators_have_no_gauss_newton_part():
    H = Hessian(*case("tanh"))
    with pytest.raises(ArgumentTypeError, match="method is 'control', but the operator is a GGN"):
        trace(H.related(GGN), method="control")
    with pytest.raises(ArgumentTypeError, match="method is 'forward', but the operator is a GGN"):
        trace(H.related(GGN), method="forward")
