"""What the recipes of runs share: which tasks they run on and how long, and each task's fixed radii and grids.

The paper: ResNet-34, batches of 32, 30 epochs. Methods of two gradients a step fix the budget, 2 · 30 · ⌈n / 32⌉
gradient evaluations; one of a single gradient makes twice as many steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin_lab.methods import method
from flatmin_lab.recipes.studies import Found, Scale
from flatmin_lab.recipes.study_text import setup_text
from flatmin_lab.spec import Arm, Changes
from flatmin_lab.tasks import task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_EPOCHS, _BATCH = 30, 32


@dataclass(frozen=True)
class Ground:
    """A task as these recipes use it.

    Attributes:
        examples: To train on.
        data: The data set as the paper calls it; empty for those it does not have.
        sigma: Standard deviation of the noise where it is fixed.
        rho: Radius of SAM where it is fixed.
        sigmas: Those walked for a sensitivity curve.
        rhos: The same for SAM and USAM.
        colour: Whether its examples are colour images of things that keep their class when mirrored.
        tried: How many values of a grid are tried; None for all.
    """

    examples: int
    data: str = ""
    sigma: float = 0.01
    rho: float = 0.05
    sigmas: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    rhos: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    colour: bool = True
    tried: int | None = None


def _digits(examples: int, sigma: float, rho: float, tried: int | None = None) -> Ground:
    return Ground(
        examples,
        sigma=sigma,
        rho=rho,
        sigmas=(0.01, 0.02, 0.05, 0.1, 0.15, 0.2)[:tried],
        rhos=(0.02, 0.04, 0.1, 0.2, 0.4, 1.0)[:tried],
        colour=False,
        tried=tried,
    )


GROUNDS = {
    "digits-tiny": _digits(200, 0.05, 0.1, tried=2),
    "digits-clean": _digits(200, 0.05, 0.2),
    "digits-noisy": _digits(300, 0.1, 0.5),
    "cifar10-jpeg75-resnet20": Ground(2000),
    "cifar10-resnet34": Ground(45_000, "CIFAR-10"),
    "cifar100-resnet34": Ground(45_000, "CIFAR-100"),
    "aircraft-resnet34": Ground(3334, "Aircraft"),
    "caltech256-resnet34": Ground(7680, "Caltech-256"),
    "indoor-resnet34": Ground(4824, "Indoor"),
    "retina-resnet34": Ground(1396, "Retina"),
}
"""Task to what these recipes know of it; the paper's have the sizes of its Table 3."""


def sizes(paper: Sequence[str], *, seeds: int = 3, digits_seeds: int = 8) -> dict[str, tuple[Scale, ...]]:
    """The tasks of each size of a recipe.

    Args:
        paper: Those of the paper.
        seeds: How many the paper has.
        digits_seeds: How many on the digits at `small`.
    """
    return {
        "toy": (Scale("digits-tiny", seeds=2, budget=24),),
        "small": (
            Scale("digits-clean", seeds=digits_seeds, budget=1200),
            Scale("digits-noisy", seeds=digits_seeds, budget=1200),
            Scale("cifar10-jpeg75-resnet20", seeds=3, budget=400),
        ),
        "paper": paper_scales(paper, seeds=seeds),
    }


def paper_scales(tasks: Iterable[str], *, seeds: int = 3) -> tuple[Scale, ...]:
    """The paper's tasks, as long as the paper trains."""
    return tuple(Scale(name, seeds, published_budget(GROUNDS[name].examples)) for name in tasks)


def published_budget(examples: int) -> int:
    """Gradient evaluations of a run in the paper, of a method that needs two a step."""
    return 2 * _EPOCHS * math.ceil(examples / _BATCH)


def arm(
    scale: Scale, name: str, factor: float = 1, *, value: float | None = None, changes: Changes | None = None
) -> Arm:
    """A method on a task, with a grid of its own or one value.

    Args:
        scale: The task, and the budget that is multiplied.
        name: Of the method.
        factor: Multiplies the budget.
        value: Of sigma, rho or alpha; None for the task's grid, or as much of it as is tried.
        changes: Of the task's setting; None for none.
    """
    way, tried = method(name), GROUNDS[scale.task].tried
    values = None if value is None else (value,)
    if value is None and tried is not None:
        values = task(scale.task).grid(way)[:tried]
    return Arm(
        task=scale.task,
        method=name,
        budget=round(factor * scale.budget),
        changes=changes or Changes(),
        values=values,
    )


def differs(found: Sequence[Found]) -> str:
    """How the runs of these recipes differ from the paper's."""
    data = (
        ""
        if all(GROUNDS[one.scale.task].data for one in found)
        else "Data and networks are others than the paper's, so that signs and orders can be compared, numbers cannot. "
    )
    return (
        f"{data}Rows of one budget have as many gradient evaluations, so that SGD and label smoothing make twice as "
        "many steps as methods with two a step. The base optimizer is one for all and is not tuned. σ, ρ and α are "
        "chosen from one grid on validation data over two seeds where nothing else is said. The last weights are "
        "tested, not those that are best on validation data. The trace is of all parameters in evaluation mode, not of "
        f"convolutions alone. Setup: {setup_text(found)}."
    )
