"""Makes the pictures and the numbers of landscapes.md: python docs/landscapes.py (a minute on one core).

SGD and NSO train the same network from the same weights on the digits whose labels are partly wrong; what is drawn is
the training loss around both solutions, each pair on one scale.
"""

# ruff: noqa: T201 (a script: what it prints is what it is for)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import flatmin as fm
from flatmin.landscape import (
    Trajectory,
    common_levels,
    difference,
    eigenvector_directions,
    plot_line,
    plot_plane,
    plot_trajectory,
    random_directions,
    surface,
    trajectory_plane,
    unit,
)
from flatmin_lab.data.digits import digits_noisy
from flatmin_lab.models.mlp import mlp

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.optim import Optimizer

HERE = Path(__file__).resolve().parent
BATCH, SIGMA = 25, 0.12
METHODS: dict[str, tuple[int, Callable[[Optimizer], Any]]] = {
    "SGD": (2400, lambda base: base),  # as many gradients as NSO has
    "NSO": (1200, lambda base: fm.NSO(base, sigma=SIGMA)),
}
DATA = digits_noisy(0)
BATCHES = [(DATA.train.inputs, DATA.train.targets)]


def train(steps: int, wrap: Callable[[Optimizer], Any]) -> tuple[nn.Module, Trajectory]:
    """Train a network and record its way."""
    torch.manual_seed(0)
    model, order = mlp(), torch.Generator().manual_seed(0)
    opt = wrap(SGD(model.parameters(), lr=0.02, momentum=0.9))
    trajectory, ((x, y),) = Trajectory(model, capacity=80), BATCHES
    trajectory.record()
    rows = torch.arange(0)
    for _ in range(steps):
        if len(rows) < BATCH:
            rows = torch.randperm(len(x), generator=order)
        batch, rows = rows[:BATCH], rows[BATCH:]

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            opt.zero_grad()
            loss = cross_entropy(model(x[batch]), y[batch])
            loss.backward()
            return loss

        opt.step(closure)
        trajectory.record()
    return model, trajectory


def slices(model: nn.Module, coordinates: torch.Tensor, directions: Any) -> Any:
    """Return the training loss on a line or a plane."""
    return surface(model, cross_entropy, BATCHES, coordinates=coordinates, directions=directions)


def lines(models: dict[str, nn.Module], axes: Any) -> None:
    """Draw both solutions along their first eigenvector, and along random directions, by distance."""
    for ax, kind in zip(axes, ("eigenvector", "random"), strict=True):
        reach = torch.linspace(-2, 2, 81) if kind == "eigenvector" else torch.linspace(-30, 30, 81)
        found = []
        for name, model in models.items():
            if kind == "eigenvector":
                pairs = fm.top_eigenvalues(fm.Hessian(model, cross_entropy, BATCHES), k=1)
                print(f"{name}: largest eigenvalue {pairs.values[0]:.4g} ± {pairs.errors[0]:.1g}")
                directions = eigenvector_directions(pairs, 1)
            else:
                directions = [unit(direction) for direction in random_directions(model, 1)]
            found.append(slices(model, reach, directions))
        plot_line(found, ax, labels=list(models))
        ax.set_xlabel("distance along the first eigenvector of each" if kind == "eigenvector" else "distance, random")


def planes(models: dict[str, nn.Module], axes: Any) -> None:
    """Draw both solutions over planes of random directions of the filters' lengths, with one set of levels."""
    reach = torch.linspace(-1, 1, 31)
    found = [slices(model, reach, random_directions(model)) for model in models.values()]
    levels = common_levels(*found)
    for name, plane, ax in zip(models, found, axes, strict=True):
        plot_plane(plane, ax, levels=levels).set_title(name, loc="left")
        print(f"{name}: filters' lengths, directions are {plane.lengths[0]:.3g} and {plane.lengths[1]:.3g} long")


def way(model: nn.Module, trajectories: dict[str, Trajectory], ax: Any) -> None:
    """Draw the ways of both over their common plane."""
    plane = trajectory_plane(model, *trajectories.values())
    found = surface(model, cross_entropy, BATCHES, coordinates=plane.around(41), directions=plane.directions)
    plot_trajectory(plane, plot_plane(found, ax), labels=list(trajectories))
    print(plane)
    for name, path in zip(trajectories, plane.paths, strict=True):
        length = path.points[0].norm()
        print(
            f"{name}: starts {length:.3g} from the weights within the plane, off it by up to {path.distances.max():.3g}"
        )


def main() -> None:
    """Make the pictures, and print the numbers."""
    torch.set_num_threads(1)
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the choice of its backend)

    trained = {name: train(*how) for name, how in METHODS.items()}
    models = {name: model for name, (model, _) in trained.items()}
    for name, model in models.items():
        with torch.no_grad():
            accuracy = float((model(DATA.test.inputs).argmax(1) == DATA.test.targets).float().mean())
            print(
                f"{name}: training loss {cross_entropy(model(BATCHES[0][0]), BATCHES[0][1]):.4g}, test {accuracy:.1%}"
            )

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    lines(models, axes)
    figure.savefig(HERE / "landscapes-lines.png", dpi=110)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    planes(models, axes)
    figure.savefig(HERE / "landscapes-planes.png", dpi=110)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    way(models["NSO"], {name: trained[name][1] for name in ("NSO", "SGD")}, axes[0])
    between = slices(models["SGD"], torch.linspace(-0.25, 1.25, 61), [difference(models["SGD"], models["NSO"])])
    plot_line(between, axes[1]).set_xlabel("from SGD (0) to NSO (1)")
    figure.savefig(HERE / "landscapes-ways.png", dpi=110)


if __name__ == "__main__":
    main()
