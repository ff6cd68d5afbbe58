"""The routes to a product against each other, and what becomes of models without a second derivative."""

import sys

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from curvature_cases import CASES, Attention, case, data, dense_hessian, everything, mlp
from flatmin.curvature import Hessian
from flatmin.curvature.operators import GGN, EmpiricalFisher, FunctionalHessian
from flatmin.errors import ArgumentError, ArgumentTypeError

KINDS = [Hessian, FunctionalHessian, GGN, EmpiricalFisher]


def eye(operator):
    return torch.eye(operator.shape[0], dtype=operator.dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_gives_the_same(kind, name):
    args = case(name)
    reverse, forward = (kind(*args, route=route) for route in ("reverse", "forward"))
    torch.testing.assert_close(forward @ eye(forward), reverse @ eye(reverse), rtol=1e-9, atol=1e-12)
    assert "forward" in forward.route


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "relu"])
def test_differences_give_the_same_within_their_error(kind, name):
    args = case(name)
    exact, differences = (kind(*args, route=route) for route in ("reverse", "differences"))
    expected = exact @ eye(exact)
    found = differences @ eye(exact)
    assert differences.error < 1e-5
    assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-9
    assert differences.route.startswith("central differences (step ")


@pytest.mark.parametrize("route", ["reverse", "forward", "differences"])
@pytest.mark.parametrize("mode", ["eval", "current"])
@pytest.mark.parametrize("kind", [Hessian, GGN])
def test_no_route_leaves_a_trace_and_all_use_the_same_masks(route, mode, kind):
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    model[0].bias.requires_grad_(requires_grad=False)
    operator = kind(model, loss_fn, batches, mode=mode, route=route)
    vector = torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64)
    before = everything(model)
    product = operator @ vector
    assert everything(model) == before
    torch.testing.assert_close(product, kind(model, loss_fn, batches, mode=mode) @ vector, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_routes_cost(kind):
    spent = {}
    for route in ("reverse", "forward", "differences"):
        operator = kind(*case("ragged"), route=route)
        vector = torch.ones(operator.shape[0], dtype=torch.float64)
        operator @ vector
        before = operator.gradients
        operator @ vector
        spent[route] = operator.gradients - before
    expected = {
        Hessian: (3, 3, 2),
        FunctionalHessian: (3, 3, 3),
        GGN: (7 / 3, 5 / 3, 5 / 3),
        EmpiricalFisher: (7 / 3, 5 / 3, 5 / 3),
    }[kind]
    assert tuple(spent.values()) == pytest.approx(expected)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class Sine(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def sine(function):
    return nn.Sequential(nn.Linear(3, 4), Sine(function), nn.Linear(4, 3)).double()


def embedding(sparse):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(4, 3, sparse=sparse), nn.Tanh(), nn.Linear(3, 3)).double()


TOKENS = [(torch.tensor([0, 1, 3]), torch.tensor([0, 1, 2]))]


def flash(x):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None])[0, 0]


def cdist(x):
    return torch.cdist(x, torch.eye(4, dtype=x.dtype))


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    ("function", "twin", "reason"),
    [
        (Once.apply, torch.sin, "a function marked once_differentiable"),
        (cdist, lambda x: (x[:, None] - torch.eye(4, dtype=x.dtype)).square().sum(-1).sqrt(), "_cdist_backward"),
        (
            flash,
            lambda x: torch.softmax(x @ x.mT / x.shape[-1] ** 0.5, -1) @ x,
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        ),
    ],
)
def test_without_a_second_derivative_differences_are_used(function, twin, reason):
    model = sine(function)
    H = Hessian(model, functional.cross_entropy, data())
    assert H.route == "reverse over reverse"
    expected_model = sine(twin)
    expected_model.load_state_dict(model.state_dict())
    expected = Hessian(expected_model, functional.cross_entropy, data()) @ eye(H)
    with H.session():
        found = H @ eye(H)
        again = H @ eye(H)
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert torch.equal(found, again)
    assert H.route.startswith("central differences (step ")
    assert H.route.endswith(f"no second derivative: {reason}")
    with pytest.raises(ArgumentTypeError, match=r"no second derivative by this route: .*route='auto'"):
        Hessian(model, functional.cross_entropy, data(), route="reverse") @ eye(H)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_gradients(kind):
    sparse, whole = (kind(embedding(s), functional.cross_entropy, TOKENS) for s in (True, False))
    expected = whole @ eye(whole)
    found = sparse @ eye(whole)
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert "sparse" in sparse.route


def test_backward_passes_without_forward_mode():
    net = nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.Linear(2, 1))
    with pytest.raises(ArgumentTypeError, match="no forward mode"):
        Hessian(net, nn.functional.mse_loss, [(torch.ones(1, 2), torch.ones(1, 1))], route="forward") @ torch.ones(9)


def test_other_errors_pass():
    def broken(x):
        raise RuntimeError("something else")

    H = Hessian(sine(broken), functional.cross_entropy, data())
    with pytest.raises(RuntimeError, match="something else"):
        H @ torch.ones(H.shape[0])
    assert H.route == "reverse over reverse"


def test_an_unknown_route():
    with pytest.raises(ArgumentError, match=r"route is 'revers', .*Did you mean 'reverse'"):
        Hessian(*case("tanh"), route="revers")


def test_related_operators_take_the_same_route():
    H = Hessian(*case("tanh"), route="differences")
    assert H.related(GGN).route == "central differences"
    assert Hessian(*case("tanh"), route="forward").related(GGN).route == "dual numbers forward, then reverse"


def test_parameters_held_elsewhere_are_refused_by_dual_numbers():
    class Elsewhere(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.list = [self.weight]

        def forward(self, x):
            return super().forward(x) + x @ self.list[0]

    H = Hessian(Elsewhere().double(), functional.cross_entropy, data(), route="forward")
    with pytest.raises(ArgumentError, match=r"'weight' by a reference of its own.*route='reverse'"):
        H @ torch.ones(H.shape[0])


def test_a_recurrent_network_by_dual_numbers():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x[:, None])[0][:, 0]

    model = Recurrent().double()
    reverse, forward = (Hessian(model, functional.cross_entropy, data(), route=r) for r in ("reverse", "forward"))
    torch.testing.assert_close(forward @ eye(forward), reverse @ eye(forward))


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.parametrize("memory", [None, 0])
def test_activation_checkpointing(kind, memory):
    plain, saving = sine(torch.sin), sine(lambda x: checkpoint(torch.sin, x, use_reentrant=False))
    saving.load_state_dict(plain.state_dict())
    expected, operator = (kind(m, functional.cross_entropy, data(), memory=memory) for m in (plain, saving))
    with operator.session():
        for _ in range(2):
            torch.testing.assert_close(operator @ eye(operator), expected @ eye(operator))


def test_reentrant_checkpointing_is_refused():
    model = sine(lambda x: checkpoint(torch.sin, x, use_reentrant=True))
    H = Hessian(model, functional.cross_entropy, data())
    with pytest.raises(ArgumentError, match=r"use_reentrant=True, which allows nothing but.*use_reentrant=False"):
        H @ torch.ones(H.shape[0])


@pytest.mark.parametrize("kind", [Hessian, GGN])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks there
@pytest.mark.parametrize("how", ["whole", "submodule", "in place", "function"])
def test_compiled_models(kind, how):
    plain = mlp().double()
    expected = kind(plain, functional.cross_entropy, data())
    model = mlp().double()
    model.load_state_dict(plain.state_dict())
    if how == "whole":
        model = torch.compile(model, backend="aot_eager")
    elif how == "submodule":
        model.act = torch.compile(model.act, backend="aot_eager")
    elif how == "in place":
        model.compile(backend="aot_eager")
    else:
        model.act = Sine(torch.compile(torch.tanh, backend="aot_eager"))
    model(data()[0][0]).sum().backward()  # compiles
    operator = kind(model, functional.cross_entropy, data())
    torch.testing.assert_close(operator @ eye(operator), expected @ eye(operator))
    assert not operator.route.startswith("central")
    differences = kind(model, functional.cross_entropy, data(), route="differences")
    torch.testing.assert_close(differences @ eye(operator), expected @ eye(operator), rtol=1e-5, atol=1e-7)
    assert torch.compiler.is_compiling() is False
    assert "torch._dynamo" in sys.modules


def test_attention_runs_by_the_math_kernel_or_by_its_own():
    model, loss_fn, batches = case("attention")
    expected = dense_hessian(model, loss_fn, batches)
    assert isinstance(model, Attention)
    H = Hessian(model, loss_fn, batches, route="differences")
    assert (H @ eye(H) - expected).norm() < 1e-6 * expected.norm()
