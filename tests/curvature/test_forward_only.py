"""Quadratic forms from forward passes alone, against whole matrices."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import CASES, case, data, dense_hessian, everything, mlp
from flatmin.curvature import Hessian, top_eigenvalues
from flatmin.curvature.operators import (
    GGN,
    ForwardOnlyFunctional,
    ForwardOnlyGGN,
    ForwardOnlyHessian,
    FunctionalHessian,
)
from flatmin.curvature.operators.step_control import choose_step
from flatmin.curvature.trace import trace
from flatmin.errors import ArgumentError, ArgumentTypeError, DataError, NonFiniteError

SMOOTH = [name for name in CASES if name != "relu"]


def signs(d, m, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randint(0, 2, (d, m), generator=g) - 1).to(dtype)


def forms(matrix, block):
    return (block * (matrix @ block)).sum(0)


@pytest.mark.parametrize("name", SMOOTH)
def test_hessian(name):
    model, loss_fn, batches = case(name)
    dense = dense_hessian(model, loss_fn, batches)
    H = ForwardOnlyHessian(model, loss_fn, batches)
    block = signs(len(dense), 4)
    got, expected = H.quadratic_forms(block), forms(dense, block)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-8)
    if name != "constant gradient":
        assert (got - expected).abs().max() < 10 * H.error * expected.abs().max()


@pytest.mark.parametrize("name", [n for n in SMOOTH if n != "constant gradient"])
def test_gauss_newton(name):
    block = signs(GGN(*case(name)).shape[0], 3)
    expected = forms(GGN(*case(name)), block)
    torch.testing.assert_close(ForwardOnlyGGN(*case(name)).quadratic_forms(block), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in SMOOTH if n != "constant gradient"])
def test_functional(name):
    R = FunctionalHessian(*case(name))
    block = signs(R.shape[0], 3)
    scale = forms(Hessian(*case(name)), block).abs().max()
    forward_only = R.forward_only()
    assert isinstance(forward_only, ForwardOnlyFunctional)
    assert (forward_only.quadratic_forms(block) - forms(R, block)).abs().max() < 1e-5 * scale


def test_the_parts_add_up_to_the_whole_at_one_step():
    args = case("tanh")
    block = signs(Hessian(*args).shape[0], 3)
    found = [kind(*args, step=1e-3).quadratic_forms(block) for kind in (ForwardOnlyGGN, ForwardOnlyFunctional)]
    torch.testing.assert_close(found[0] + found[1], ForwardOnlyHessian(*args, step=1e-3).quadratic_forms(block))


@pytest.mark.parametrize("kind", [Hessian, ForwardOnlyHessian])
def test_columns_that_lie_apart_in_memory(kind):
    A = kind(*case("tanh"))
    block = signs(A.shape[0], 3)
    apart, together = block.clone(), block.T.contiguous().T
    assert not apart[:, 0].is_contiguous()
    torch.testing.assert_close(A.quadratic_forms(apart), A.quadratic_forms(together), rtol=1e-14, atol=0)
    if kind is Hessian:
        assert torch.equal(A @ apart, A @ together)


@pytest.mark.parametrize("name", ["tanh", "ragged", "regression", "conv, batch-norm, dropout", "mappings"])
def test_float32(name):
    dense = dense_hessian(*case(name))
    H = ForwardOnlyHessian(*case(name, torch.float32))
    block = signs(len(dense), 8)
    relative = (H.quadratic_forms(block.float()) - forms(dense, block)).abs() / forms(dense, block).abs().mean()
    assert relative.max() < 5e-3
    assert 1e-5 < H.error < 1e-2
    assert 0.003 < next(iter(H._steps.values())).size < 0.3


def test_outputs_carry_more_digits_than_losses():
    """At one step in float32: second differences of losses cancel, those of outputs hold."""
    dense = dense_hessian(*case("ragged"))
    model, loss_fn, batches = case("ragged", torch.float32)
    block = signs(len(dense), 16)
    outputs = ForwardOnlyHessian(model, loss_fn, batches, step=0.01)
    losses = ForwardOnlyHessian(model, lambda z, y: loss_fn(z, y) + 0 * model.a.weight.sum(), batches, step=0.01)
    errors = [
        (A.quadratic_forms(block.float()) - forms(dense, block)).square().mean().sqrt() for A in (outputs, losses)
    ]
    assert errors[0] < errors[1] / 3
    assert "of outputs" in outputs.route
    assert "of losses" in losses.route


def test_a_penalty_on_the_weights_is_seen():
    model, loss_fn, batches = case("tanh")

    def penalised(z, y):
        return loss_fn(z, y) + 3 * model.a.weight.square().sum()

    block = signs(38, 3)
    got = ForwardOnlyHessian(model, penalised, batches).quadratic_forms(block)
    torch.testing.assert_close(got, forms(dense_hessian(model, loss_fn, batches), block) + 6 * 15, rtol=1e-5, atol=0)


def test_a_model_that_returns_its_loss():
    class Labelled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, labels):
            logits = self.inner(x)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    model, loss_fn, pairs = case("ragged")
    batches = [{"x": x, "labels": y} for x, y in pairs]
    dense, block = dense_hessian(model, loss_fn, pairs), signs(38, 3)
    own = ForwardOnlyHessian(Labelled(model), lambda out, batch: out["loss"], batches)
    torch.testing.assert_close(own.quadratic_forms(block), forms(dense, block), rtol=1e-4, atol=0)
    assert "of losses" in own.route
    logits = ForwardOnlyHessian(Labelled(model), lambda out, b: loss_fn(out["logits"], b["labels"]), batches)
    torch.testing.assert_close(logits.quadratic_forms(block), forms(dense, block), rtol=1e-5, atol=0)
    assert "of outputs" in logits.route
    with pytest.raises(ArgumentTypeError, match=r"cannot be told from the network.*\(logits\)"):
        ForwardOnlyGGN(Labelled(model), lambda out, batch: out["loss"], batches).quadratic_forms(block)


def test_a_loss_that_writes_into_the_outputs():
    model, _, batches = case("tanh")

    def inplace(z, y):
        z[:, 0].mul_(2.0)
        return functional.cross_entropy(z, y)

    block = signs(38, 3)
    got = ForwardOnlyHessian(model, inplace, batches).quadratic_forms(block)
    plain = Hessian(model, lambda z, y: inplace(z.clone(), y), batches)
    torch.testing.assert_close(got, forms(plain, block), rtol=1e-5, atol=0)


def test_the_step_fits_the_parameters_that_a_vector_touches():
    """A bias alone, a hundred times smaller than the weights, gets a step of its own."""
    model, loss_fn, batches = case("tanh")
    with torch.no_grad():
        model.a.bias.mul_(0.01)
    dense = dense_hessian(model, loss_fn, batches)
    H = ForwardOnlyHessian(model, loss_fn, batches)
    block = signs(38, 2)
    block[:15], block[20:] = 0, 0
    torch.testing.assert_close(H.quadratic_forms(block), forms(dense, block), rtol=1e-5, atol=1e-9)
    zero = torch.zeros(38, 1, dtype=torch.float64)
    assert H.quadratic_forms(torch.cat([zero, signs(38, 1)], dim=1))[0] == 0
    assert len(H._steps) == 2
    with torch.no_grad():
        model.a.bias.zero_()
    dense = dense_hessian(model, loss_fn, batches)
    torch.testing.assert_close(H.quadratic_forms(block), forms(dense, block), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("memory", [0, 3000, None])
@pytest.mark.parametrize("mode", ["eval", "current"])
def test_how_many_batches_are_held_changes_nothing(memory, mode):
    """Dropout draws the same masks at all points of a batch, whatever was evaluated in between."""
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    model[1].eval()
    args = model, loss_fn, [*batches, *batches]
    H = ForwardOnlyHessian(*args, memory=memory, mode=mode)
    block = signs(H.shape[0], 3)
    expected = forms(Hessian(*args, mode=mode), block)
    torch.testing.assert_close(H.quadratic_forms(block), expected, rtol=1e-5, atol=1e-8)


def test_sums_blocks_and_projections_have_forms():
    model, loss_fn, batches = case("gelu")
    dense = dense_hessian(model, loss_fn, batches)
    H, G = ForwardOnlyHessian(model, loss_fn, batches), GGN(model, loss_fn, batches)
    block, basis = signs(38, 3), signs(38, 2, seed=1)
    near = {"rtol": 1e-5, "atol": 1e-7}
    torch.testing.assert_close((H - G / 2).quadratic_forms(block), forms(dense, block) - forms(G, block) / 2, **near)
    torch.testing.assert_close(H.block("b.*").quadratic_forms(block[20:]), forms(dense[20:, 20:], block[20:]), **near)
    P = basis @ torch.linalg.inv(basis.T @ basis) @ basis.T
    inside = forms(P @ dense @ P, block)
    torch.testing.assert_close(H.projected(basis).quadratic_forms(block), inside, **near)
    for made in (H - G, H.block("b.*"), H.projected(basis)):
        assert not made.multiplies
    assert (0.5 * G).multiplies


def test_cost():
    H = ForwardOnlyHessian(*case("ragged"), step=1e-3)
    H.quadratic_forms(signs(38, 5))
    assert H.gradients == pytest.approx(1 / 3 + 5 * 2 / 3)
    assert H.error is None
    assert H.route == "second differences of outputs, forward passes only, step 0.001"


def test_trace():
    model, loss_fn, batches = case("gelu")
    exact = float(dense_hessian(model, loss_fn, batches).trace())
    H = ForwardOnlyHessian(model, loss_fn, batches)
    estimate = trace(H, num_matvecs=24, method="hutchinson")
    assert abs(estimate.value - exact) < 4 * estimate.stderr
    assert estimate.value == pytest.approx(
        trace(Hessian(model, loss_fn, batches), num_matvecs=24, method="hutchinson").value, rel=1e-5
    )


def test_a_trace_asks_for_nothing_but_forms():
    H = ForwardOnlyHessian(*case("gelu"))
    for estimate in (trace(H, num_matvecs=20), trace(H, rtol=0.2)):
        assert estimate.reason == "the operator has quadratic forms and no products"
        assert abs(estimate.value - 0.9978192824) < 4 * estimate.stderr
    with pytest.raises(ArgumentTypeError, match="Eigenvalues, densities and diagonals need products"):
        top_eigenvalues(H, k=1)


class Recorded(nn.Module):
    """Says which kernel and which grad mode it met."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(2, 6)
        self.modes = set()

    def forward(self, x):
        self.modes.add((torch.is_grad_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None]).mean(dim=(1, 2))


def test_graphs_that_are_kept_outlive_a_displacement():
    """The weights are the same bits again, and torch's count of writes with them."""
    model, loss_fn, batches = case("ragged")
    H = Hessian(model, loss_fn, batches)
    F = H.related(ForwardOnlyHessian)
    block = signs(38, 2)
    with H.session():
        expected = H @ block
        before = H.gradients
        torch.testing.assert_close(F.quadratic_forms(block), (block * expected).sum(0), rtol=1e-5, atol=0)
        steps, between = F._steps, H.gradients
        assert torch.equal(H @ block, expected)
        assert H.gradients - between == pytest.approx(2 * 2)
        F.quadratic_forms(block)
        assert F._steps is steps
    assert before == pytest.approx(1 + 2 * 2)
    with torch.no_grad():
        model.a.weight.mul_(1.01)
    F.quadratic_forms(block)
    assert F._steps is not steps


def test_no_graph_is_recorded_and_fused_kernels_stay():
    model = Recorded().double()
    batches = [(torch.randn(3, 4, 2).double(), torch.ones(3, 2).double())]
    ForwardOnlyHessian(model, functional.mse_loss, batches).quadratic_forms(signs(18, 2))
    assert model.modes == {(False, True)}


def test_compiled_models_run_compiled():
    model, loss_fn, batches = case("tanh")
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    block = signs(38, 3)
    expected = ForwardOnlyHessian(model, loss_fn, batches, step=1e-3).quadratic_forms(block)
    H = ForwardOnlyHessian(torch.compile(model, backend=backend), loss_fn, batches, step=1e-3)
    torch.testing.assert_close(H.quadratic_forms(block), expected, rtol=1e-9, atol=0)
    assert calls
    assert list(H.layout.shapes) == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_bf16_is_refused_where_it_is_useless():
    model, loss_fn, batches = case("ragged", torch.bfloat16)
    dense = dense_hessian(*case("ragged"))
    block = signs(38, 8)
    H = ForwardOnlyHessian(model, loss_fn, batches)
    error = (H.quadratic_forms(block.float()) - forms(dense, block)).abs().max() / forms(dense, block).abs().max()
    assert error < 2 * H.error < 0.6
    with torch.no_grad():
        model.b.weight.mul_(100)
    before = everything(model)
    with pytest.raises(ArgumentError, match=r"bfloat16 are too coarse.*float32"):
        ForwardOnlyHessian(model, loss_fn, batches).quadratic_forms(signs(38, 1, dtype=torch.float32))
    assert everything(model) == before


def test_kinks_are_seen_and_the_gauss_newton_part_is_not_disturbed():
    """Piecewise linear networks: the Gauss-Newton trace is the Hessian's, and its differences hold small steps."""
    model, loss_fn, batches = case("relu")
    block = signs(38, 6)
    expected = forms(GGN(model, loss_fn, batches), block)
    torch.testing.assert_close(
        ForwardOnlyGGN(model, loss_fn, batches).quadratic_forms(block), expected, rtol=1e-5, atol=0
    )


def test_nothing_is_left_changed():
    model, loss_fn, batches = case("conv, batch-norm, dropout", torch.float32)
    model.train()
    batches[0][0].requires_grad_()
    before = everything(model)
    ForwardOnlyHessian(model, loss_fn, batches, mode="current").quadratic_forms(torch.ones(44, 1)[: _dimension(model)])
    assert everything(model) == before
    assert [x.requires_grad for x, _ in batches] == [True, False]
    calls = []

    def fails(z, y):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss_fn(z, y) + 0 * model[0].bias.sum()

    with pytest.raises(KeyboardInterrupt):
        ForwardOnlyHessian(model, fails, batches).quadratic_forms(torch.ones(_dimension(model)))
    assert everything(model) == before


def _dimension(model):
    return sum(p.numel() for p in model.parameters())


class Cliff(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.where(self.w.sum() == 3, self.w.sum(), torch.inf) * x


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (
            lambda: ForwardOnlyHessian(*case("tanh")) @ torch.ones(38),
            ArgumentTypeError,
            r"quadratic_forms.*use Hessian\(",
        ),
        (lambda: ForwardOnlyGGN(*case("tanh")) @ torch.ones(38), ArgumentTypeError, r"use GGN\("),
        (lambda: ForwardOnlyHessian(*case("tanh"), step=0.0), ArgumentError, "step is 0"),
        (lambda: ForwardOnlyHessian(*case("tanh")).quadratic_forms(torch.ones(37)), ArgumentError, r"shape \(37,\)"),
        (
            lambda: ForwardOnlyHessian(mlp(), functional.cross_entropy, []).quadratic_forms(torch.ones(38)),
            DataError,
            "no batch",
        ),
        (
            lambda: ForwardOnlyHessian(Cliff(), lambda z, y: z.sum(), [(torch.ones(1), torch.ones(1))]).quadratic_forms(
                torch.ones(3)
            ),
            NonFiniteError,
            "overflow at displaced weights",
        ),
        (
            lambda: ForwardOnlyHessian(mlp().requires_grad_(requires_grad=False), functional.cross_entropy, data()),
            ArgumentError,
            r"requires_grad_\(True\)",
        ),
    ],
)
def test_messages(do, error, message):
    with pytest.raises(error, match=message):
        do()


@pytest.mark.parametrize("rounding", [1, 2])
def test_the_step_balances_truncation_and_rounding(rounding):
    """At the best step a h² = (p/2) b h^-p; the chosen one is within a factor of four, and its error is told right."""
    a, b = 0.7, 1e-9
    best = (rounding * b / (2 * a)) ** (1 / (2 + rounding))

    def evaluate(h):
        return 5 + a * h**2 + b / h**rounding * math.sin(1e3 / h), 5.0

    for start in (1.0, best, 1e-6):
        step = choose_step(evaluate, start, rounding=rounding, enough=0.0, limit=100.0)
        assert best / 4 < step.size < 4 * best
        true = a * step.size**2 / 5
        assert true < 3 * step.error
        assert step.error < 30 * (a * best**2) / 5


def test_an_overflow_at_large_steps_tells_nothing_of_small_ones():
    def evaluate(h):
        return (None, 0.0) if h > 1.5 else (torch.tensor([1 + h**2, 2 - h**2]), 2.0)

    step = choose_step(evaluate, 1.0, rounding=1, enough=1e-3, limit=8.0)
    assert step.size < 0.1
    assert 0 < step.error < 1e-3


def test_a_step_that_is_good_enough_ends_the_search():
    steps = []

    def evaluate(h):
        steps.append(h)
        return 1 + h**2, 1.0

    choose_step(evaluate, 1e-4, rounding=2, enough=1e-6, limit=1.0)
    assert len(steps) == 3
