"""Small models and data, each made anew and the same at every call, and the measures that cells are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]
Closure = Callable[[], Tensor]


def seeded(build: Callable[[], T], seed: int = 0) -> T:
    """Run ``build()`` under a seed of its own, leaving the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mlp(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Three smooth layers."""
    return seeded(lambda: nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 3))).to(
        dtype
    )


def normed(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A model with batch normalization."""
    return seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3))).to(dtype)


def dropped(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A model with dropout."""
    return seeded(lambda: nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.4), nn.Tanh(), nn.Linear(12, 3))).to(dtype)


def data(n: int = 24, dtype: torch.dtype = torch.float64, seed: int = 1) -> Batch:
    """Inputs [n, 6] and labels [n] of three classes."""
    return seeded(lambda: (torch.randn(n, 6).to(dtype), torch.randint(0, 3, (n,))), seed)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, averaged over the batch."""
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs).double(), labels)


def closure_of(opt: Optimizer, model: nn.Module, batch: Batch, loss: Callable[..., Tensor] = loss_of) -> Closure:
    """Return what torch's contract asks for: clear the gradients, compute the loss, call backward, return the loss."""

    def closure() -> Tensor:
        opt.zero_grad()
        value = loss(model, batch)
        value.backward()
        return value

    return closure


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy everything in a model that training could touch, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the largest absolute difference between the tensors of two states; infinite where one is NaN."""
    largest = 0.0
    for name in a.keys() & b.keys():
        gap = (a[name].double() - b[name].double()).abs()
        largest = max(largest, float(gap.nan_to_num(torch.inf).max()) if gap.numel() else 0.0)
    return largest


def train(
    step: Callable[[Any, Closure], Any], opt: Any, model: Any, batch: Batch | None = None, *, steps: int = 3
) -> dict[str, Tensor]:
    """Take steps on one batch under global seeds of their own, and return the state of the model."""
    batch = data() if batch is None else batch
    for index in range(steps):
        torch.manual_seed(100 + index)
        step(opt, closure_of(opt, model, batch))
    return snapshot(model)
