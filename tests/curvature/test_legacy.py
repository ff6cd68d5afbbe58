"""The authors' quantities against their description, and against what they are called."""

import math

import pytest
import torch
from torch import nn

from curvature_cases import case, dense_hessian
from flatmin.curvature.counted import Counted
from flatmin.curvature.draws import columns
from flatmin.curvature.layout import Layout
from flatmin.curvature.legacy import _STREAM, LAYERS, authors_lambda, authors_trace
from flatmin.curvature.operators import Hessian, Operator
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Gaussian
from flatmin.streams import Stream
from reference.authors_curvature import lambda_1, partial_trace


class Named(Operator):
    """A matrix whose coordinates belong to blocks."""

    def __init__(self, A, sizes):
        self.A, self.layout = A, Layout({f"block{i}": torch.Size([size]) for i, size in enumerate(sizes)})
        self.shape, self.dtype, self.device = (len(A), len(A)), A.dtype, A.device

    def _multiply(self, columns):
        return self.A @ columns


def psd(sizes, rank, seed):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(sum(sizes), rank, generator=g, dtype=torch.float64)
    return root @ torch.diag(torch.logspace(0, -2, rank, dtype=torch.float64)) @ root.T


@pytest.mark.parametrize("seed", range(20))
def test_between_the_eigenvalue_and_as_many_times_that_as_there_are_blocks(seed):
    sizes = [5, 7, 3, 9, 4]
    A = psd(sizes, 1 + seed % 12, seed)
    top = float(torch.linalg.eigvalsh(A)[-1])
    value = authors_lambda(Named(A, sizes), layers=["*"], tol=1e-9, max_iterations=5000, seed=seed).value
    assert top * (1 - 1e-4) <= value <= len(sizes) * top * (1 + 1e-9)
    one = authors_lambda(Named(A, [28]), layers=["*"], tol=1e-12, max_iterations=5000, seed=seed)
    assert one.value == pytest.approx(top, rel=1e-4)  # a single block: power iteration


def test_equal_blocks_make_it_as_many_times_too_large():
    A = torch.ones(12, 12, dtype=torch.float64)  # the eigenvector has equal parts in all blocks
    assert authors_lambda(Named(A, [3] * 4), layers=["*"]).value == pytest.approx(4 * 12, rel=1e-5)


@pytest.mark.parametrize("name", ["tanh", "relu", "ragged", "conv, batch-norm, dropout"])
def test_twins(name):
    model, loss_fn, batches = case(name)
    H = Hessian(model, loss_fn, batches)
    chosen = [n for n in H.layout.shapes if n.endswith("weight") and n != "1.weight"]  # not batch-norm's
    places = torch.cat([torch.arange(H.shape[0])[H.layout.slices[n]] for n in chosen])
    matrix = dense_hessian(model, loss_fn, batches)[places][:, places]
    sizes = [H.layout.shapes[n].numel() for n in chosen]
    layers = chosen if name.startswith("conv") else "linear"

    counted, stream = Counted(H.block(*chosen)), Stream(3).child(_STREAM)
    value = authors_lambda(H, layers=layers, seed=3)
    twin = lambda_1(matrix, sizes, columns(counted, stream, 0, 1, Gaussian())[:, 0])
    assert value.layers == pytest.approx(dict(zip(chosen, twin)), rel=1e-6)
    assert value.value == pytest.approx(sum(twin), rel=1e-6)

    trace = authors_trace(H, layers=layers, seed=3)
    expected, count = partial_trace(matrix, columns(counted, stream, 0, 100).T)
    assert trace.value == pytest.approx(expected, rel=1e-9)
    assert trace.num_matvecs == count == len(trace.samples)
    assert trace.stderr == pytest.approx(float(trace.samples.std()) / math.sqrt(count))


def test_the_stop_rule_knows_nothing_of_the_error():
    """Where the off-diagonal is what varies, most runs end far from where they say they are."""
    A = torch.ones(10, 10, dtype=torch.float64)
    estimates = [authors_trace(Named(A, [10]), layers=["*"], seed=seed) for seed in range(200)]
    errors = torch.tensor([e.value / 10 - 1 for e in estimates])
    assert float(errors.square().mean().sqrt()) > 30 * 1e-3
    assert min(e.num_matvecs for e in estimates) <= 2


def test_which_layers():
    model = nn.ModuleDict(
        {
            "conv1": nn.Conv2d(1, 1, 1),
            "bn1": nn.BatchNorm2d(1),
            "downsample": nn.Conv2d(1, 1, 1),
            "pred_head": nn.Linear(1, 2),
            "fc": nn.Linear(1, 2),
            "pooler": nn.Linear(1, 2),
        }
    )
    found = {kind: [n for n, m in model.named_modules() if rule(n, m)] for kind, rule in LAYERS.items()}
    assert found == {"conv": ["conv1", "pred_head"], "linear": ["pred_head", "fc"], "conv1d": []}
    Conv1D = type("Conv1D", (nn.Module,), {})
    assert LAYERS["conv1d"]("h.0.attn", Conv1D())


def test_seeds():
    H = Hessian(*case("gelu"))
    for quantity in (authors_lambda, authors_trace):
        first, again, other = (quantity(H, layers="linear", seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first.value != other.value
        assert first.gradients is not None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda H: authors_lambda(H), ArgumentError, "layers is 'conv', but Sequential has no trainable weight.*'fc"),
        (lambda H: authors_trace(H, layers="liner"), ArgumentError, "layers is 'liner'.*mean 'linear'"),
        (lambda H: authors_trace(2 * H, layers="linear"), ArgumentTypeError, "a Sum knows no modules"),
        (lambda H: authors_lambda(torch.eye(3)), ArgumentTypeError, "Tensor without named parameters"),
        (lambda H: authors_lambda(H, layers=["c.*"]), ArgumentError, "fits no trainable parameter"),
        (lambda H: authors_lambda(H, layers="linear", max_iterations=0), ArgumentError, "max_iterations is 0"),
        (lambda H: authors_trace(H, layers="linear", tol=0), ArgumentError, "tol is 0"),
        (lambda H: authors_trace(H, layers="linear", seed=-1), ArgumentError, "seed is -1"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(Hessian(*case("gelu")))
