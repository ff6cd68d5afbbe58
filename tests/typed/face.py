"""The public face as a user writes it, checked by pyright in strict mode (`make types`); it is never run."""

# pyright: strict

from collections.abc import Callable
from typing import assert_type

import torch
from torch import Tensor, nn

import flatmin as fm

Batches = list[tuple[Tensor, Tensor]]


def train(model: nn.Module, loss: nn.Module, batches: Batches, closure: Callable[[], Tensor]) -> None:
    """Both ways of a step, and a loop that cannot be edited."""
    opt = fm.NSO(
        torch.optim.SGD(model.parameters(), lr=0.02), sigma=0.01, num_perturbations=1, noise="gaussian", seed=0
    )
    for x, y in batches:
        for probe in opt.probes():
            with probe:
                loss(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    opt.step(closure)
    handle = fm.attach(model, torch.optim.SGD(model.parameters(), lr=0.02), sigma=0.01)
    assert_type(handle, fm.Attachment)
    handle.remove()


def measure(model: nn.Module, loss: nn.Module, batches: Batches) -> float:
    """What is measured says what it is."""
    H = fm.Hessian(model, loss, batches)
    assert_type(fm.trace(H, num_matvecs=100, seed=0), fm.TraceEstimate)
    assert_type(fm.top_eigenvalues(H, k=5, seed=0), fm.EigenPairs)
    assert_type(fm.spectral_density(H, seed=0), fm.SpectralDensity)
    gap = fm.perturbation_gap(model, loss, batches, sigma=0.01, num_samples=100, seed=0)
    assert_type(gap, fm.GapEstimate)
    return fm.trace(H, rtol=0.02, seed=0).value


def certify(model: nn.Module, prior: dict[str, Tensor], batches: Batches) -> fm.Certificate:
    """A certificate is one."""
    return fm.certify(model, prior=prior, batches=batches, sigma=0.03, delta=0.05, seed=0)
