"""Layer by layer: every block within its error, shares that add up and know of each other's errors."""

import json
import math

import pytest
import torch

from curvature_cases import case, dense_hessian
from flatmin.curvature.counted import Counted
from flatmin.curvature.diagonal import diagonal
from flatmin.curvature.eigenvalues import top_eigenvalues
from flatmin.curvature.frobenius import frobenius_norm
from flatmin.curvature.layerwise import layerwise
from flatmin.curvature.layerwise.sampling import BlockTraces, Tolerance, sampled_traces
from flatmin.curvature.normalized import normalized_trace
from flatmin.curvature.operators import GGN, FunctionalHessian, Hessian
from flatmin.curvature.trace import trace
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.streams import Stream


def blocks_of(operator, matrix, names=None):
    """The traces of the diagonal blocks of a dense matrix, by parameter."""
    slices = operator.layout.slices
    return {name: float(matrix.diagonal()[slices[name]].sum()) for name in names or slices}


def two_sizes():
    """Two blocks of very different size with strong coupling, and where they lie."""
    g = torch.Generator().manual_seed(4)
    A = torch.randn(44, 44, generator=g, dtype=torch.float64)
    A = A + A.T
    A[40:, 40:] = torch.diag(torch.full((4,), 2.0, dtype=torch.float64)) + 0.1 * A[40:, 40:]
    A[:40, :40] += 12 * torch.eye(40, dtype=torch.float64)
    return A, [[slice(0, 40)], [slice(40, 44)]]


def unknown(count):
    return BlockTraces(torch.zeros(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64))


NETWORKS = ["tanh", "gelu", "relu", "ragged", "regression", "conv, batch-norm, dropout", "tied", "frozen", "unused"]


@pytest.mark.parametrize("name", [*NETWORKS, "mappings", "scalar parameter"])
@pytest.mark.parametrize("options", [{}, {"control_variate": False}])
def test_networks(name, options):
    model, loss_fn, batches = case(name)
    matrix = dense_hessian(model, loss_fn, batches)
    H = Hessian(model, loss_fn, batches)
    result = layerwise(trace, H, groups="parameter", **options)
    exact = blocks_of(H, matrix)
    assert [layer.name for layer in result] == list(exact)
    for layer in result:
        assert abs(layer.value - exact[layer.name]) <= 4.5 * layer.stderr + 1e-10
    assert result.whole is not None
    assert abs(result.whole.value - float(matrix.trace())) <= 4 * result.whole.stderr + 1e-10
    assert sum(layer.value for layer in result) == pytest.approx(result.whole.value, rel=1e-12)
    assert sum(layer.share for layer in result) == pytest.approx(1.0, rel=1e-12)
    assert result.gradients == pytest.approx(H.gradients)


@pytest.mark.parametrize("name", ["relu", "ragged relu"])
def test_piecewise_linear_networks_are_exact(name):
    model, loss_fn, batches = case("relu")
    if name == "ragged relu":
        batches = [batches[0], tuple(part[:2] for part in batches[1])]
    H = Hessian(model, loss_fn, batches)
    exact = blocks_of(H, dense_hessian(model, loss_fn, batches))
    result = layerwise(trace, H, groups="parameter", rtol=1e-6)
    assert result.num_matvecs == 0
    assert result.converged
    for layer in result:
        assert layer.value == pytest.approx(exact[layer.name], rel=1e-9)
        assert layer.stderr == layer.share_stderr == 0.0


def test_of_smooth_networks_only_the_rest_is_sampled():
    model, loss_fn, batches = case("tanh")
    H = Hessian(model, loss_fn, batches)
    plain, controlled = (layerwise(trace, H, groups="parameter", control_variate=on) for on in (False, True))
    R = H.related(FunctionalHessian) @ torch.eye(38, dtype=torch.float64)
    assert controlled["b.weight"].stderr == controlled["b.bias"].stderr == 0.0  # the last layer is linear
    own = R[:20, :20]
    variance = 2 * (own.square().sum() - own.diagonal().square().sum())
    assert controlled.whole.stderr == pytest.approx(math.sqrt(float(variance) / 100), rel=0.3)
    assert controlled.whole.stderr < 0.5 * plain.whole.stderr


def test_many_classes_are_sampled_and_their_errors_hold():
    g = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 80)).double()
    for parameter in model.parameters():
        parameter.data.normal_(generator=g)
    batches = [(torch.randn(6, 3, generator=g, dtype=torch.float64), torch.arange(6))]
    H = Hessian(model, torch.nn.functional.cross_entropy, batches)
    matrix = GGN(model, torch.nn.functional.cross_entropy, batches) @ torch.eye(H.shape[0], dtype=torch.float64)
    exact = blocks_of(H, matrix)
    results = [layerwise(trace, H, groups="parameter", seed=seed) for seed in range(16)]
    deviations = torch.tensor(
        [[(r[n].value - exact[n]) / r[n].stderr if r[n].stderr else 0.0 for n in exact] for r in results]
    )
    assert float(deviations.square().mean().sqrt()) < 1.6
    wholes = torch.tensor([(r.whole.value - float(matrix.trace())) / max(r.whole.stderr, 1e-9) for r in results])
    assert float(wholes.square().mean().sqrt()) < 1.6
    assert all(sum(layer.share for layer in r) == pytest.approx(1.0) for r in results)


def test_modules_and_patterns_add_their_parameters_up():
    H = Hessian(*case("gelu"))
    single = layerwise(trace, H, groups="parameter", control_variate=False)
    modules = layerwise(trace, H, control_variate=False)
    weights = layerwise(trace, H, groups={"weights": "*.weight"}, control_variate=False)
    assert [(layer.name, layer.parameters) for layer in modules] == [
        ("a", ("a.weight", "a.bias")),
        ("b", ("b.weight", "b.bias")),
    ]
    assert modules["a"].value == pytest.approx(single["a.weight"].value + single["a.bias"].value)
    assert [layer.name for layer in weights] == ["weights", "rest"]
    assert weights["weights"].value == pytest.approx(single["a.weight"].value + single["b.weight"].value)
    assert modules.whole.stderr == pytest.approx(single.whole.stderr)
    assert [layer.size for layer in modules] == [20, 18]
    assert [layer.name for layer in layerwise(trace, Hessian(*case("scalar parameter")))] == ["temperature", "linear"]


def test_errors_of_shares_count_covariances():
    A, _ = two_sizes()
    truth = float(A[:40, :40].trace()) / float(A.trace())
    H = on_names(A, {"big": 40, "small": 4})
    results = [layerwise(trace, H, num_matvecs=50, seed=seed) for seed in range(200)]
    errors = torch.tensor([r["big"].share - truth for r in results])
    claimed = torch.tensor([r["big"].share_stderr for r in results])
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(claimed.mean()), rel=0.15)
    inside = int((errors.abs() < 2.0 * claimed).sum())
    assert 181 <= inside <= 199
    assert all(r["big"].share_stderr == pytest.approx(r["small"].share_stderr) for r in results)  # they add up to one
    wholes = torch.tensor([r.whole.value - float(A.trace()) for r in results])
    assert float(wholes.square().mean().sqrt()) == pytest.approx(results[0].whole.stderr, rel=0.3)


def on_names(A, sizes):
    """A matrix with names for its coordinates."""
    from flatmin.curvature.layout import Layout
    from flatmin.curvature.operators import Operator

    class Dense(Operator):
        def __init__(self):
            self.layout = Layout({name: torch.Size([size]) for name, size in sizes.items()})
            self.shape, self.dtype, self.device = (len(A), len(A)), A.dtype, A.device

        def _multiply(self, columns):
            return A @ columns

    return Dense()


def test_common_probes_have_the_variance_of_theory():
    A, places = two_sizes()
    found = unknown(2)
    sampled_traces(Counted(A), places, found, budget=20_000, tolerance=None, stream=Stream(0))
    inside = 2 * (A[40:, 40:].square().sum() - A[40:, 40:].diagonal().square().sum())
    across = A[40:, :40].square().sum()
    assert float(found.covariance[1, 1]) * 20_000 == pytest.approx(float(inside + across), rel=0.05)
    # z_b'A_bc z_c enters both blocks alike.
    assert float(found.covariance[0, 1]) * 20_000 == pytest.approx(float(across), rel=0.1)


def test_small_blocks_are_freed_from_the_noise_of_large_ones():
    A, places = two_sizes()
    tolerance = Tolerance(0.03, torch.zeros(2, dtype=torch.float64))
    counted, found = Counted(A), unknown(2)
    sampled_traces(counted, places, found, budget=50_000, tolerance=tolerance, stream=Stream(1))
    exact = torch.stack([A[:40, :40].trace(), A[40:, 40:].trace()])
    stderr = found.covariance.diagonal().sqrt()
    assert found.met(tolerance)
    assert bool((stderr <= 0.03 * found.values.abs()).all())
    assert bool(((found.values - exact).abs() < 4 * stderr).all())
    assert float(found.covariance[0, 1]) == 0.0  # other probes
    alone = float(A[40:, :40].square().sum()) / (0.03 * 8) ** 2  # common probes until the small block is known
    assert counted.num_matvecs < 0.25 * alone


@pytest.mark.parametrize("options", [{"rtol": 0.1}, {"atol": 6.0}, {"rtol": 0.05, "atol": 1.0}])
def test_peeled_estimates_are_unbiased_and_their_errors_true(options):
    A, _ = two_sizes()
    H = on_names(A, {"big": 40, "small": 4})
    results = [layerwise(trace, H, seed=seed, **options) for seed in range(100)]
    assert all(r.converged for r in results)
    for name, block in (("big", A[:40, :40]), ("small", A[40:, 40:])):
        errors = torch.tensor([r[name].value - float(block.trace()) for r in results])
        claimed = torch.tensor([r[name].stderr for r in results])
        assert all(
            r[name].stderr <= max(options.get("atol", 0), options.get("rtol", 0) * abs(r[name].value)) for r in results
        )
        assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(100)
        assert float(errors.square().mean().sqrt()) == pytest.approx(float(claimed.square().mean().sqrt()), rel=0.25)


def test_says_when_the_budget_ended_first():
    result = layerwise(trace, Hessian(*case("gelu")), num_matvecs=70, rtol=1e-6, control_variate=False)
    assert not result.converged
    assert result.num_matvecs <= 70
    assert "not converged" in str(result)


def test_the_mean_eigenvalue_of_layers():
    H = Hessian(*case("gelu"))
    whole, mean = layerwise(trace, H, seed=2), layerwise(normalized_trace, H, seed=2)
    for layer, scaled in zip(whole, mean):
        assert scaled.value == pytest.approx(layer.value / layer.size)
        assert scaled.stderr == pytest.approx(layer.stderr / layer.size)
        assert (scaled.share, scaled.share_stderr) == (layer.share, layer.share_stderr)
    assert mean.whole.value == pytest.approx(whole.whole.value / 38)
    fine = layerwise(normalized_trace, H, atol=0.002, control_variate=False)
    assert all(layer.stderr <= 0.002 for layer in fine)


def test_any_estimator_of_blocks():
    model, loss_fn, batches = case("gelu")
    matrix = dense_hessian(model, loss_fn, batches)
    H = Hessian(model, loss_fn, batches)
    blocks = {"a": matrix[:20, :20], "b": matrix[20:, 20:]}
    tops = layerwise(top_eigenvalues, H, k=2)
    for name, block in blocks.items():
        values = torch.linalg.eigvalsh(block)
        values = values[values.abs().argsort(descending=True)]
        torch.testing.assert_close(tops[name].estimate.values, values[:2], rtol=1e-3, atol=1e-6)
        assert tops[name].value == pytest.approx(float(values[0]), rel=1e-3)
    assert tops.whole is None
    assert math.isnan(tops["a"].share)
    assert tops.num_matvecs == sum(row.estimate.num_matvecs for row in tops)
    assert tops.gradients == pytest.approx(H.gradients)
    for layer in layerwise(frobenius_norm, H, num_matvecs=60):
        assert abs(layer.value - float(blocks[layer.name].norm())) < 4 * layer.stderr + 1e-6
    for layer in layerwise(diagonal, H):
        torch.testing.assert_close(layer.estimate.value, blocks[layer.name].diagonal())
        assert math.isnan(layer.value)
    own = layerwise(lambda A: float(A.shape[0]), H)
    assert [layer.value for layer in own] == [20.0, 18.0]


@pytest.mark.parametrize("kind", [GGN, FunctionalHessian])
def test_other_operators(kind):
    model, loss_fn, batches = case("gelu")
    operator = kind(model, loss_fn, batches)
    matrix = operator @ torch.eye(38, dtype=torch.float64)
    for part in (operator, 2.0 * operator):
        factor = 1.0 if part is operator else 2.0
        for layer in layerwise(trace, part, groups="parameter"):
            exact = factor * blocks_of(operator, matrix)[layer.name]
            assert abs(layer.value - exact) < 4.5 * layer.stderr + 1e-10


def test_prints_and_writes():
    result = layerwise(trace, Hessian(*case("gelu")), num_matvecs=40, control_variate=False)
    lines = str(result).splitlines()
    assert lines[0].split() == ["layer", "size", "trace", "share"]
    assert [line.split()[0] for line in lines] == ["layer", "a", "b", "whole", "40"]
    assert len({len(line) for line in lines[1:3]}) == 1
    stored = json.loads(json.dumps(result.to_dict()))
    assert stored["layers"][0] == {
        "name": "a",
        "parameters": ["a.weight", "a.bias"],
        "size": 20,
        "value": result["a"].value,
        "stderr": result["a"].stderr,
        "share": result["a"].share,
        "share_stderr": result["a"].share_stderr,
    }
    assert stored["whole"]["value"] == result.whole.value
    tops = layerwise(top_eigenvalues, Hessian(*case("gelu")))
    assert str(tops).splitlines()[0].split() == ["layer", "size", "top_eigenvalues"]
    assert json.loads(json.dumps(tops.to_dict()))["layers"][0]["share"] is None
    assert result[0] is result["a"]
    assert len(result) == 2


def test_seeds():
    H = Hessian(*case("gelu"))
    first, again, other = (layerwise(trace, H, seed=s, control_variate=False) for s in (1, 1, 2))
    assert first == again
    assert first["a"].value != other["a"].value


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda H: layerwise(trace, torch.eye(3)), ArgumentTypeError, "Tensor without named parameters.*Hessian"),
        (lambda H: layerwise("trace", H), ArgumentTypeError, "estimator is 'trace'.*such as trace"),
        (lambda H: layerwise(trace, H, groups="modul"), ArgumentError, "groups is 'modul'.*mean 'module'"),
        (lambda H: layerwise(trace, H, groups=["a"]), ArgumentTypeError, r"groups is \['a'\].*mapping"),
        (lambda H: layerwise(trace, H, groups={"x": "c.*"}), ArgumentError, r"'c.\*' fits no trainable parameter"),
        (lambda H: layerwise(trace, H, groups={"x": 5}), ArgumentTypeError, "entry 'x': 5, but a name is needed"),
        (lambda H: layerwise(trace, H, groups={1: "a.*"}), ArgumentTypeError, r"entry 1: 'a\.\*'.*such as 'head'"),
        (lambda H: layerwise(trace, H, groups={"x": []}), ArgumentTypeError, "one or more patterns.*Leave.*out"),
        (lambda H: layerwise(trace, H, groups={"x": [["a.*"]]}), ArgumentTypeError, "entry 'x'"),
        (
            lambda H: layerwise(trace, H, groups={"x": "a.*", "y": "*.bias"}),
            ArgumentError,
            "'a.bias' fits the layers 'x' and 'y'",
        ),
        (lambda H: layerwise(trace, H, groups={"rest": "a.*"}), ArgumentError, "2 parameters fit no layer, 'b.weight'"),
        (lambda H: layerwise(trace, H, method="xtrace"), ArgumentError, "'method' is no option.*lambda A: trace"),
        (lambda H: layerwise(trace, H, num_matvecs=1), ArgumentError, "num_matvecs is 1"),
        (lambda H: layerwise(trace, H, rtol=0), ArgumentError, "rtol is 0"),
        (lambda H: layerwise(trace, H, seed=-1), ArgumentError, "seed is -1"),
        (lambda H: layerwise(trace, 2 * H, control_variate=True), ArgumentError, "operator is a Sum"),
        (lambda H: layerwise(trace, H)["c"], ArgumentError, "no layer 'c'. There are 'a', 'b'"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(Hessian(*case("gelu")))


def test_an_error_says_in_which_layer():
    with pytest.raises(ArgumentError, match="k is 4") as caught:
        layerwise(top_eigenvalues, Hessian(*case("gelu")), groups="parameter", k=4)
    assert caught.value.__notes__ == ["in layer 'b.bias', whose block has dimension 3"]
