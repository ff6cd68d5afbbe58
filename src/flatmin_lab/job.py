"""What one worker does at a time: train a run, measure its curvature, draw its surface, whichever is still missing."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import safetensors.torch
import torch
from torch import Tensor, nn

from flatmin_lab.environment import environment
from flatmin_lab.errors import DivergedError
from flatmin_lab.run import network, train
from flatmin_lab.sharpness import curvature
from flatmin_lab.spec import Point, RunResult, RunSpec, Surface
from flatmin_lab.tasks import task
from flatmin_lab.training import Trained

if TYPE_CHECKING:
    from flatmin_lab.data.splits import Batches

SURFACE_REACH = 1.0
"""How far a surface extends on either side of the solution, in filter norms."""

SURFACE_STEPS = 12
"""Points along either direction and to either side of a solution."""


@dataclass(frozen=True)
class Job:
    """A run and what is wanted of it.

    Attributes:
        spec: The run.
        stored: Its result, if it has been trained before.
        weights: File of its weights, if it has been trained before.
        measure: Whether trace and top eigenvalue are wanted.
        surface: Whether its loss surface is wanted.
    """

    spec: RunSpec
    stored: RunResult | None = None
    weights: Path | None = None
    measure: bool = False
    surface: bool = False

    TRAINING: ClassVar[float] = 1.0
    MEASURING: ClassVar[float] = 0.3
    DRAWING: ClassVar[float] = 0.3

    @property
    def weight(self) -> float:
        """Its time in units of a training run's, roughly: what the time left is reckoned by."""
        training = 0.0 if self.stored else self.TRAINING
        return training + self.measure * self.MEASURING + self.surface * self.DRAWING


@dataclass(frozen=True)
class Outcome:
    """What came of a job: the result, and what is new besides.

    Attributes:
        result: The run's numbers.
        weights: Its weights as safetensors writes them, where it was trained by this job: bytes, because tensors
            sent between processes stay tied to the memory of the sender.
        surface: Its surface, where that was asked for.
        environment: Machine and software that did it.
    """

    result: RunResult
    weights: bytes | None = None
    surface: Surface | None = None
    environment: dict[str, str] = field(default_factory=environment)


def execute(job: Job) -> Generator[Point, None, Outcome]:
    """Do a job. A run that diverges is an outcome, not an error: its result says so.

    Args:
        job: What is wanted.

    Yields:
        Points of the training history.

    Returns:
        What came of it.
    """
    try:
        trained = (yield from train(job.spec)) if job.stored is None else _reload(job.stored, job.weights)
    except DivergedError as error:
        return Outcome(
            RunResult.diverged(
                job.spec, str(error), gradient_evaluations=error.gradient_evaluations, seconds=error.seconds
            )
        )
    result = trained.result
    if not (job.measure or job.surface):
        return Outcome(result, _serialised(trained.weights) if job.stored is None else None)
    on = task(job.spec.task)
    model = network(job.spec, trained.weights).eval()
    batches = on.measured(on.load(job.spec.seed).train.to(next(model.parameters()).device))
    if job.measure:
        result = result.model_copy(update=curvature(model, on, batches, seed=job.spec.seed))
    surface = draw(job.spec, model, batches) if job.surface else None
    return Outcome(result, _serialised(trained.weights) if job.stored is None else None, surface)


def draw(spec: RunSpec, model: nn.Module, batches: Batches) -> Surface:
    """The training loss on a plane through the solution.

    Args:
        spec: The run. The plane's directions depend on its seed alone, so that surfaces of one seed can be compared.
        model: Its trained network, in evaluation mode.
        batches: Its training examples.

    Returns:
        The surface.
    """
    from flatmin.landscape import surface

    coordinates = torch.arange(-SURFACE_STEPS, SURFACE_STEPS + 1) * (SURFACE_REACH / SURFACE_STEPS)  # 0 is among them
    plane = surface(model, task(spec.task).loss, batches, coordinates=coordinates, seed=spec.seed)
    return Surface(
        task=spec.task,
        method=spec.method,
        seed=spec.seed,
        coordinates=tuple(coordinates.tolist()),
        loss=tuple(tuple(row) for row in plane.loss.tolist()),
    )


def _serialised(weights: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(weights)


def _reload(result: RunResult, weights: Path | None) -> Trained:
    if weights is None:
        return Trained(result, {})
    return Trained(result, safetensors.torch.load_file(weights))
