"""Central differences: the step, its error, kinks, and weights that come back to the bit."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import case, data, everything, mlp
from flatmin.curvature import Hessian
from flatmin.curvature.operators.differences import FiniteDifferenceHessian
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError


def eye(operator):
    return torch.eye(operator.shape[0], dtype=operator.dtype)


def wide_mlp(act, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = nn.Sequential(nn.Linear(8, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 3)).to(dtype)
        batches = [(torch.randn(n, 8, dtype=dtype), torch.randint(0, 3, (n,))) for n in (64, 30)]
    return model, functional.cross_entropy, batches


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 0.01), (torch.float64, 1e-6)])
@pytest.mark.parametrize("act", [nn.Tanh, nn.SiLU])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_told(dtype, bound, act, seed):
    """The true error lies below the estimate, and the estimate is of use: at most 30 times the truth."""
    args = wide_mlp(act, dtype)
    H = FiniteDifferenceHessian(*args)
    vector = torch.randn(H.shape[0], generator=torch.Generator().manual_seed(seed), dtype=dtype)
    exact = Hessian(*args) @ vector
    true = float((H @ vector - exact).norm() / exact.norm())
    assert true < 2 * H.error < 60 * true
    assert H.error < bound
    assert f"estimated error {H.error:.1g}" in H.route
    assert "kink" not in H.route


def test_the_length_of_the_vector_does_not_matter():
    args = wide_mlp(nn.Tanh, torch.float64)
    vector = torch.ones(FiniteDifferenceHessian(*args).shape[0], dtype=torch.float64)
    short, unit, long = (FiniteDifferenceHessian(*args) @ (s * vector) for s in (1e-12, 1.0, 1e9))
    torch.testing.assert_close(short * 1e12, unit)
    torch.testing.assert_close(long / 1e9, unit)


def test_kinks_are_named_and_seen():
    """|w| has second derivative 0 almost everywhere; differences across the kink give 1/h."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1e-3)
    args = model, lambda z, _: z.abs().mean(), [(torch.ones(2, 1).double(), torch.zeros(2))]
    one = torch.ones(1, dtype=torch.float64)
    assert Hessian(*args) @ one == 0
    wide, narrow = (FiniteDifferenceHessian(*args, step=h) for h in (0.01, 1e-4))
    torch.testing.assert_close(wide @ one, one / 0.01)
    assert wide.error == pytest.approx(0.75)  # 1/h against 4/h
    torch.testing.assert_close(narrow @ one, 0 * one, atol=1e-9, rtol=0)
    assert "across the kinks of Abs, which autodiff does not see" in wide.route


def test_a_relu_network_in_single_precision_is_marked():
    args = wide_mlp(nn.ReLU, torch.float32)
    H = FiniteDifferenceHessian(*args)
    vector = torch.randn(H.shape[0], generator=torch.Generator().manual_seed(0))
    exact = Hessian(*args) @ vector
    assert (H @ vector - exact).norm() > 0.05 * exact.norm()
    assert "across the kinks of Relu, which autodiff does not see" in H.route


@pytest.mark.parametrize("interrupted", [False, True])
def test_weights_come_back_to_the_bit(interrupted):
    model, loss_fn, batches = wide_mlp(nn.Tanh, torch.float32)
    calls = []

    def loss(output, targets):
        calls.append(1)
        if interrupted and len(calls) == 5:
            raise KeyboardInterrupt
        return loss_fn(output, targets)

    H = FiniteDifferenceHessian(model, loss, batches)
    before = everything(model)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            H @ torch.ones(H.shape[0])
    else:
        H @ torch.ones(H.shape[0])
    assert everything(model) == before


def test_zero_vectors_cost_nothing_and_blocks_are_columns():
    args = case("gelu")
    H = FiniteDifferenceHessian(*args)
    block = torch.stack([torch.zeros(H.shape[0]), torch.ones(H.shape[0])], dim=1).double()
    product = H @ block
    assert torch.equal(product[:, 0], block[:, 0])
    assert torch.equal(product[:, 1], H @ block[:, 1])
    before = H.gradients
    H @ block
    assert H.gradients - before == pytest.approx(2)


def test_a_linear_gradient_has_no_error():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    H = FiniteDifferenceHessian(model, functional.mse_loss, [(x, torch.zeros(5, 1).double())])
    torch.testing.assert_close(H @ eye(H), 2 * x.T @ x / 5)
    assert H.error < 1e-8
    flat = FiniteDifferenceHessian(nn.Linear(3, 3).double(), lambda z, _: z.mean(), data())
    assert not (flat @ eye(flat)).any()
    assert flat.error == 0


def test_a_session_and_other_operators_do_not_meet():
    """Displacing counts as writing, so that graphs that another operator keeps are built anew."""
    H = Hessian(*case("ragged"))
    D = H.related(FiniteDifferenceHessian)
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    with (H + D).session():
        for _ in range(2):
            torch.testing.assert_close((H + D) @ vector, 2 * Hessian(*case("ragged")) @ vector, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (lambda: FiniteDifferenceHessian(*case("tanh"), step=0), ArgumentError, "step is 0.*displacement"),
        (
            lambda: FiniteDifferenceHessian(*case("tanh", torch.bfloat16)),
            ArgumentTypeError,
            r"16 bits.*\.float\(\).*route='forward'",
        ),
        (
            lambda: FiniteDifferenceHessian(
                mlp().double(), lambda z, y: functional.cross_entropy(z, y) + float("nan"), data()
            ),
            NonFiniteError,
            "loss of batch 0 is nan.*weights are finite",
        ),
        (
            lambda: FiniteDifferenceHessian(mlp().double(), lambda z, _: (100 * z).exp().mean(), data(), step=1e4),
            NonFiniteError,
            "loss of batch 0 is inf at weights displaced.*smaller step",
        ),
    ],
)
def test_messages(do, error, message):
    with pytest.raises(error, match=message):
        H = do()
        H @ torch.ones(H.shape[0], dtype=H.dtype)
