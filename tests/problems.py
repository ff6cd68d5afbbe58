"""Small models and data for the tests, each made anew, the same at every call."""

import torch
from torch import nn


def seeded(build, seed=0):
    """Run ``build()`` under a seed of its own, leaving the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mlp(dtype=torch.float64):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))).to(dtype)


def with_state(dtype=torch.float32):
    """Batch-norm statistics and dropout masks: everything that an extra forward pass could disturb."""
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.4), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3)
        )
    ).to(dtype)


def data(n=24, dtype=torch.float64, seed=1):
    return seeded(lambda: (torch.randn(n, 6).to(dtype), torch.randint(0, 3, (n,))), seed)


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def closure_of(optimizer, model, batch):
    def closure():
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        return value

    return closure


def snapshot(model):
    """Everything in a model that training could touch, by name, as copies."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    """Bitwise equality of two dicts (or sequences) of tensors."""
    if not isinstance(a, dict):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
