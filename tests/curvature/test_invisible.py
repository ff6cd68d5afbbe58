"""Whatever is measured, nothing is left changed."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from curvature_cases import case, everything
from flatmin.curvature import Hessian, top_eigenvalues, trace
from flatmin.landscape import surface
from flatmin.measures import perturbation_gap
from flatmin.optim import attach

MEASUREMENTS = {
    "product": lambda *args, **kw: Hessian(*args, **kw) @ torch.ones(Hessian(*args).shape[0], dtype=torch.float64),
    "trace": lambda *args, **kw: trace(Hessian(*args, **kw), 3),
    "eigenvalues": lambda *args, **kw: top_eigenvalues(Hessian(*args, **kw), max_matvecs=3),
    "gap": lambda *args, **kw: perturbation_gap(*args, sigma=0.1, num_samples=2, **kw),
    "surface": lambda *args, **kw: surface(*args, coordinates=[-1.0, 1.0], **kw),
}


class Restless(nn.Module):
    """Draws from every global generator, counts its calls, replaces a buffer, and switches a submodule's mode."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("cache", None)

    def forward(self, x):
        self.calls += 1
        self.cache = x.detach().clone()
        noise = torch.rand(()) + random.random() + np.random.rand()
        self.inner.train(not self.inner.training)
        return self.inner(x) * (1 + 0 * noise)


def prepared():
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    model[1].eval()  # a mixed state, as fine-tuning has it
    model[0].weight.grad = torch.full_like(model[0].weight, 3.0)
    model[5].bias.requires_grad_(requires_grad=False)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    g = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=g)
    return Restless(model), loss_fn, loader, g


@pytest.mark.parametrize("mode", ["eval", "current"])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_nothing_is_left_changed(name, mode):
    model, loss_fn, loader, g = prepared()
    before = everything(model, [g])
    MEASUREMENTS[name](model, loss_fn, loader, mode=mode)
    assert everything(model, [g]) == before
    assert model.cache is None


@pytest.mark.parametrize(("name", "call"), [*((name, 2) for name in MEASUREMENTS), ("gap", 6), ("surface", 4)])
def test_nothing_is_left_changed_by_an_exception(name, call):
    model, loss_fn, loader, g = prepared()
    calls = []

    def fails(output, targets):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return loss_fn(output, targets)

    before = everything(model, [g])
    with pytest.raises(KeyboardInterrupt):
        MEASUREMENTS[name](model, fails, loader)
    assert everything(model, [g]) == before


@pytest.mark.parametrize("name", ["gap", "surface"])
def test_bf16_weights_come_back_bit_for_bit(name):
    model, loss_fn, batches = case("gelu", torch.bfloat16)
    before = everything(model)
    MEASUREMENTS[name](model, loss_fn, batches)
    assert everything(model) == before


def test_modes_are_set_without_train():
    """Some modules take train() as a command to change their weights (merged adapters)."""

    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError

    model = Merging(3, 3).double()
    assert trace(Hessian(model, nn.functional.cross_entropy, case("tanh").batches), 2).value > 0


@pytest.mark.parametrize("route", ["reverse", "forward", "differences"])
@pytest.mark.parametrize("mode", ["eval", "current"])
def test_an_attached_model_is_measured_where_it_is(route, mode):
    """Noise is for training: its hooks leave the forward passes of a measurement alone, and work again afterwards."""
    model, loss_fn, batches = case("tanh")
    model.train()
    expected = Hessian(model, loss_fn, batches, mode=mode, route=route)
    vector = torch.ones(expected.shape[0], dtype=torch.float64)
    expected = expected @ vector
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = everything(model)
    with attach(model, optimizer, sigma=0.5, seed=0):
        H = Hessian(model, loss_fn, batches, mode=mode, route=route)
        with H.session():
            for _ in range(2):
                torch.testing.assert_close(H @ vector, expected, rtol=1e-6, atol=1e-8)
        assert everything(model) == before
        clean = float(loss_fn(model.eval()(batches[0][0]), batches[0][1]).detach())
        loss = loss_fn(model.train()(batches[0][0]), batches[0][1])
        assert float(loss.detach()) != clean
        loss.backward()
        optimizer.step()
