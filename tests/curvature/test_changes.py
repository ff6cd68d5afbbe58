"""What may change between two products, what may not, and what is counted as an example."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from curvature_cases import case, data, dense_hessian, mlp
from flatmin.curvature.observe import observing
from flatmin.curvature.operators import (
    GGN,
    EmpiricalFisher,
    FiniteDifferenceHessian,
    ForwardOnlyHessian,
    FunctionalHessian,
    Hessian,
)
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, NonFiniteError


@pytest.mark.parametrize("in_session", [True, False])
def test_weights_written_through_data(in_session):
    model, loss_fn, batches = case("tanh")
    H = Hessian(model, loss_fn, batches)
    unit = torch.eye(H.shape[0], dtype=H.dtype)
    with H.session() if in_session else threading.Lock():
        H @ unit[:, 0]
        model.a.weight.data.mul_(1.5)  # torch counts no write
        product = H @ unit
    torch.testing.assert_close(product, dense_hessian(model, loss_fn, batches))


def test_a_place_is_read_at_once():
    """Whatever the types of the parameters, and one number for each: a host waits for the device once."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16())
    risk = EmpiricalRisk(model, functional.cross_entropy, data())
    with Reads() as reads:
        before = risk.place()
    assert reads.count == 0  # none of a single number
    for parameter in model.parameters():
        parameter.data[0] += 1.0  # which torch counts nowhere
        assert risk.place() != before
        before = risk.place()


class Reads(TorchDispatchMode):
    """Counts the numbers that are read one by one."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_modes_changed_in_a_session():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    H = Hessian(model, functional.cross_entropy, data(), mode="current")
    unit = torch.eye(H.shape[0], dtype=H.dtype)
    with H.session():
        training = H @ unit
        model.eval()
        evaluating = H @ unit
    assert not torch.allclose(training, evaluating)
    torch.testing.assert_close(evaluating, dense_hessian(model, functional.cross_entropy, data()))


def test_parameters_frozen_meanwhile():
    model, loss_fn, batches = case("tanh")
    H = Hessian(model, loss_fn, batches)
    model.a.weight.requires_grad_(requires_grad=False)
    with pytest.raises(ArgumentError, match=r"'a\.weight' was frozen after this operator was made"):
        H @ torch.ones(H.shape[0])


def test_a_batch_of_ignored_targets():
    (x, _), *_ = data()
    H = Hessian(mlp().double(), functional.cross_entropy, [(x, torch.full((len(x),), -100))])
    with pytest.raises(NonFiniteError, match="all targets ignored"):
        H @ torch.ones(H.shape[0])


def test_embeddings_that_shorten_themselves():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Linear(3, 3))
    with pytest.raises(ArgumentError, match=r"embedding '0' has max_norm=0\.1"):
        Hessian(model, functional.cross_entropy, [(torch.arange(3), torch.arange(3))])


@pytest.mark.parametrize("kind", [Hessian, GGN, FiniteDifferenceHessian])
def test_empty_parameters(kind):
    model, loss_fn, batches = case("tanh")
    product = kind(model, loss_fn, batches) @ torch.ones(38, 2)
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 3, dtype=torch.float64)))
    torch.testing.assert_close(kind(model, loss_fn, batches) @ torch.ones(38, 2), product)


def test_blocks_of_no_vectors():
    args = case("tanh")
    for kind in (Hessian, FiniteDifferenceHessian, ForwardOnlyHessian):
        assert kind(*args).quadratic_forms(torch.zeros(38, 0)).shape == (0,)


@pytest.mark.parametrize("route", ["reverse", "forward", "differences"])
def test_penalties_are_refused_where_examples_are_weighed(route):
    model, _, batches = case("tanh")
    F = EmpiricalFisher(model, lambda z, y: functional.cross_entropy(z, y) + model.a.bias.square().sum(), batches)
    F._asked = route
    with pytest.raises(ArgumentError, match=r"depends on a\.bias besides by the outputs"):
        F @ torch.ones(38, dtype=torch.float64)


def test_a_penalty_belongs_to_the_hessian_alone():
    model, loss_fn, batches = case("tanh")
    unit = torch.eye(38, dtype=torch.float64)
    plain = [kind(model, loss_fn, batches) @ unit for kind in (Hessian, GGN, FunctionalHessian)]
    penalised = [
        kind(model, lambda z, y: loss_fn(z, y) + model.a.bias.square().sum(), batches) @ unit
        for kind in (Hessian, GGN, FunctionalHessian)
    ]
    place = Hessian(model, loss_fn, batches).layout.slices["a.bias"]
    plain[0][place, place] += 2 * torch.eye(5)
    torch.testing.assert_close(penalised, plain)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, positions, x):
        return self.linear(x[0] if isinstance(x, list) else x) + positions


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x]], ids=["tensors", "lists"])
def test_examples_of_mappings_are_those_of_most_entries(wrap):
    positions = torch.zeros(1, 3, dtype=torch.float64)
    batches = [{"positions": positions, "x": wrap(x), "labels": wrap(y)} for x, y in data(sizes=(5, 2))]
    model = Shifted()

    def loss_fn(z, batch):
        return functional.cross_entropy(z, batch["labels"][0] if isinstance(batch["labels"], list) else batch["labels"])

    H = Hessian(model, loss_fn, batches)
    plain = dense_hessian(model.linear, functional.cross_entropy, data(sizes=(5, 2)))
    torch.testing.assert_close(H @ torch.eye(12, dtype=torch.float64), plain)
    assert H.risk.num_examples == 7


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_two_threads(route):
    unit = torch.eye(38, dtype=torch.float64)
    expected = Hessian(*case("tanh"), route=route) @ unit
    cases = [case("tanh") for _ in range(2)]
    found = {}

    def measure(i):
        found[i] = Hessian(*cases[i], route=route) @ unit

    threads = [threading.Thread(target=measure, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close([found[0], found[1]], [expected, expected], rtol=0, atol=0)


def test_kernels_come_back_whichever_thread_leaves_last():
    assert torch.backends.cuda.flash_sdp_enabled()
    leave = [threading.Event() for _ in range(2)]
    inside = [threading.Event() for _ in range(2)]

    def stay(i):
        with observing(nn.Linear(1, 1), differentiable=True):
            inside[i].set()
            leave[i].wait()

    threads = [threading.Thread(target=stay, args=(i,)) for i in range(2)]
    for i, thread in enumerate(threads):
        thread.start()
        inside[i].wait()
    for i, thread in enumerate(threads):  # the first to come is the first to leave
        assert not torch.backends.cuda.flash_sdp_enabled()
        leave[i].set()
        thread.join()
    assert torch.backends.cuda.flash_sdp_enabled()
