r"""The perturbation gap against half σ² times the Hessian's trace, over a range of σ (Figure 2 of the paper).

1. A network is trained. The weights of the last epoch are looked at on the training set, in evaluation mode.
2. The gap F(W) - f(W) is estimated by pairs of points at each σ, with noise in the weights of linear layers alone.
3. It is held against σ²/2 tr ∇²f(W), the trace of the same block: equation (4). The two have errors of their own, and
   differ beyond second order, and where the network has kinks: there the trace of second derivatives misses what the
   noise meets, however small σ is.

The paper's claim is agreement within 3 %, by a measure that it does not name; here are the relative difference at each
σ, and the relative residual sum of squares Σ (gap - approximation)² / Σ gap², beside what chance alone makes of it.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, Figure 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flatmin.curvature import Hessian, trace
from flatmin.curvature.data import Forward
from flatmin.measures import perturbation_gap, perturbation_trace
from flatmin_lab.environment import environment
from flatmin_lab.recipes.gap_results import GapComparison, GapPoint, verdict
from flatmin_lab.seeds import derive, generator

if TYPE_CHECKING:
    from pathlib import Path

    from flatmin.measures import GapEstimate
    from flatmin_lab.recipes.gap_problems import Problem
    from flatmin_lab.recipes.outcome import Watch

_KINK_PAIRS = 16


@dataclass(frozen=True)
class GapRecipe:
    """How to train and what to compare.

    Attributes:
        name: A key of ``GAPS``.
        size: ``"toy"``, ``"small"`` or ``"paper"``.
        problem: Given the data root, a folder of pretrained weights and the seed, makes network and data.
        sigmas: Standard deviations of the noise, ascending.
        num_pairs: Pairs of points at each σ.
        epochs: Passes of training over the data, by Adam.
        learning_rate: At first.
        batch_size: Of training.
        decay: Factor of the learning rate, and the epochs after each of which it comes.
        rtol: Relative standard error of the trace to reach.
        max_matvecs: The most that the trace may take, in products with the Hessian.
    """

    name: str
    size: str
    problem: Callable[[Path | None, Path | None, int], Problem]
    sigmas: tuple[float, ...]
    num_pairs: int
    epochs: int
    learning_rate: float
    batch_size: int
    decay: tuple[float, int] = (0.1, 10)
    rtol: float = 0.01
    max_matvecs: int = 1000


def run_gap(
    name: str,
    size: str = "small",
    root: Path | None = None,
    seed: int = 0,
    watch: Watch = lambda *_: None,
    weights: Path | None = None,
) -> GapComparison:
    """Train a network and compare its perturbation gap with its Hessian's trace.

    Args:
        name: A key of ``GAPS``.
        size: ``"toy"``: seconds, ``"small"``: minutes, or ``"paper"``: the paper's, hours for the encoder.
        root: The data root; None for that of the environment.
        seed: Seed of everything random.
        watch: Told of the progress.
        weights: Folder of transformers that the encoder's pretrained weights lie in.

    Raises:
        ArgumentError: There is no such recipe or size, or the encoder's folder is not named.
        DataError: The data are not there.
    """
    from flatmin_lab.recipes.registry import gap_recipe

    recipe = gap_recipe(name, size)
    return compare(recipe, recipe.problem(root, weights, seed), seed, watch)


def compare(recipe: GapRecipe, problem: Problem, seed: int, watch: Watch = lambda *_: None) -> GapComparison:
    """Train ``problem`` as ``recipe`` says, and compare."""
    fit(recipe, problem, seed, watch)
    problem.leave_only_perturbed()
    model, batches = problem.model, problem.measured()
    watch("trace", 0, 1)
    H = Hessian(model, problem.loss_fn, batches)
    estimate = trace(H, num_matvecs=recipe.max_matvecs, rtol=recipe.rtol, seed=derive(seed, "probes"))
    watch("trace", 1, 1)
    options = {"sigma": recipe.sigmas[0], "num_samples": _KINK_PAIRS, "seed": derive(seed, "kinks")}
    shape = perturbation_trace(model, problem.loss_fn, batches, **options)
    gaps = _gaps(recipe, problem, batches, seed, watch)
    points = tuple(GapPoint.of(gap, estimate.value, estimate.stderr) for gap in gaps)
    squares = math.fsum(p.gap**2 for p in points) or math.nan
    smoothed = gaps[0].trace
    return GapComparison(
        name=recipe.name,
        size=recipe.size,
        seed=seed,
        network=problem.network,
        data=problem.data,
        num_examples=problem.count,
        num_perturbed=sum(p.numel() for p in model.parameters() if p.requires_grad),
        loss=gaps[0].clean_loss,
        accuracy=problem.accuracy(batches),
        trace=estimate.value,
        trace_stderr=estimate.stderr,
        trace_method=estimate.method,
        smoothed_trace=smoothed.value,
        smoothed_stderr=smoothed.stderr,
        kinks=shape.kinks,
        exponent=shape.exponent,
        num_pairs=recipe.num_pairs,
        points=points,
        rss=math.fsum((p.gap - p.approximation) ** 2 for p in points) / squares,
        chance_rss=math.fsum(p.gap_stderr**2 + p.approximation_stderr**2 for p in points) / squares,
        verdict=verdict(points, shape),
        environment=environment(),
    )


def _gaps(recipe: GapRecipe, problem: Problem, batches: list[Any], seed: int, watch: Watch) -> list[GapEstimate]:
    """Return the gap at each σ, from other draws at each, so that they err apart."""
    found: list[GapEstimate] = []
    for i, sigma in enumerate(recipe.sigmas):
        watch("gap", i, len(recipe.sigmas))
        options = {"sigma": sigma, "num_samples": recipe.num_pairs, "seed": derive(seed, f"gap at {sigma:g}")}
        found.append(perturbation_gap(problem.model, problem.loss_fn, batches, **options))
    watch("gap", len(recipe.sigmas), len(recipe.sigmas))
    return found


def fit(recipe: GapRecipe, problem: Problem, seed: int, watch: Watch) -> None:
    """Train by Adam (amsgrad), the learning rate falling in steps, as the authors' code does."""
    model, forward = problem.model.train(), Forward(problem.model, problem.loss_fn)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, amsgrad=True)
    factor, every = recipe.decay
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=every, gamma=factor)
    order = generator(seed, "batch order")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "dropout"))
        for epoch in range(recipe.epochs):
            watch("training", epoch, recipe.epochs)
            for chosen in torch.randperm(problem.count, generator=order).split(recipe.batch_size):
                batch = problem.batch(chosen.tolist())
                optimizer.zero_grad()
                forward.loss(forward.output(batch), batch).backward()
                optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    model.eval()
    watch("training", recipe.epochs, recipe.epochs)
