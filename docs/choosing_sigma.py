"""Makes the picture and the numbers of choosing-sigma.md: python docs/choosing_sigma.py (six minutes on one core).

Two small tasks of ``flatmin compare``: what the finder proposes at several moments of plain training, and which radius
then really is best on validation data.
"""

# ruff: noqa: T201 (a script: what it prints is what it is for)

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from flatmin.landscape import plot_radius
from flatmin.measures import RadiusSearch, find_rho, find_sigma
from flatmin.optim import NSO, SAM
from flatmin.optim.automatic import AutoSigma
from flatmin_lab.data.digits import digits_clean, digits_noisy
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.models.mlp import mlp

TASKS = {"clean": digits_clean, "noisy": digits_noisy}
SEEDS = (0, 1, 2, 3)
BATCH = 25
SIGMAS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16)
RHOS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2)

Look = Callable[[nn.Module], None]
Wrap = Callable[[Optimizer], Any]  # what comes out takes closures that return tensors, unlike torch's annotation


def train(splits: Splits, wrap: Wrap, seed: int, steps: int, looks: Mapping[int, Look] = MappingProxyType({})) -> float:
    """Train a network, looking at it before the steps in ``looks``; return validation accuracy."""
    torch.manual_seed(seed)
    model, order = mlp(), torch.Generator().manual_seed(seed)
    opt, rows = wrap(SGD(model.parameters(), lr=0.02, momentum=0.9)), torch.arange(0)
    x, y, held_out = splits.train.inputs, splits.train.targets, splits.validation
    for step in range(steps + 1):
        if step in looks:
            looks[step](model)
        if len(rows) < BATCH:
            rows = torch.randperm(len(x), generator=order)
        batch, rows = rows[:BATCH], rows[BATCH:]

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            opt.zero_grad()
            loss = cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            return loss

        opt.step(closure)
    with torch.no_grad():
        return float((model(held_out.inputs).argmax(1) == held_out.targets).float().mean())


def searches(model: nn.Module, split: Split) -> tuple[RadiusSearch, RadiusSearch]:
    """Search both radii; rho on one batch of the size that training uses."""
    x, y = split.inputs, split.targets
    return find_sigma(model, cross_entropy, [(x, y)]), find_rho(model, cross_entropy, [(x[:BATCH], y[:BATCH])])


def report(step: int, splits: Splits) -> Look:
    """Return a look that prints what the finder says."""

    def look(model: nn.Module) -> None:
        for name, split in (("held out", splits.validation), ("training", splits.train)):
            sigma, rho = searches(model, split)
            print(f"  step {step:4}, {name}: sigma {sigma.value:.3f} ± {sigma.stderr:.3f}, rho {rho.value:.3f}")

    return look


def draw(splits: Splits) -> Look:
    """Return a look that draws both searches."""

    def look(model: nn.Module) -> None:
        mpl.use("agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415 (after the choice of its backend)

        figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
        for search, ax in zip(searches(model, splits.validation), axes, strict=True):
            plot_radius(search, ax)
        figure.savefig(Path(__file__).with_name("choosing-sigma.png"), dpi=110)

    return look


def main() -> None:
    """Make the picture, and print the numbers."""
    torch.set_num_threads(1)
    train(digits_clean(0), lambda base: base, 0, 50, {50: draw(digits_clean(0))})
    for name, task in TASKS.items():
        print(f"{name}\n plain SGD")
        train(task(0), lambda base: base, 0, 1200, {k: report(k, task(0)) for k in (0, 50, 100, 200, 400, 1200)})

        def score(wrap: Wrap, task: Callable[[int], Splits] = task) -> str:
            return f"{100 * fmean(train(task(seed), wrap, seed, 600) for seed in SEEDS):.1f} %"

        for sigma in SIGMAS:
            print(f" NSO, sigma {sigma}: {score(lambda base, s=sigma: NSO(base, sigma=s))}", flush=True)
        for rho in RHOS:
            print(f" SAM, rho {rho}: {score(lambda base, r=rho: SAM(base, rho=r))}", flush=True)
        for maximum in (0.08, 0.8):
            found: list[AutoSigma] = []
            n = len(task(0).train)

            def automatic(
                base: Optimizer, n: int = n, maximum: float = maximum, found: list[AutoSigma] = found
            ) -> Optimizer:
                found.append(AutoSigma(n, loss_bound=math.log(10), initial=0.08, maximum=maximum, every=50))
                return NSO(base, sigma=found[-1])

            print(f" NSO, AutoSigma to {maximum}: {score(automatic)}, ending at {[round(s.value, 3) for s in found]}")


if __name__ == "__main__":
    main()
