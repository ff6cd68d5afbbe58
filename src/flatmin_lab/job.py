"""What one worker does at a time: train a run, measure its curvature, draw its surface, whichever is still missing."""

from __future__ import annotations

import io
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import flatmin as fm
from flatmin.curvature.legacy import authors_lambda
from flatmin_lab.errors import DivergedError
from flatmin_lab.run import Trained, network, train
from flatmin_lab.spec import Point, RunResult, RunSpec, Surface
from flatmin_lab.tasks import Measuring, task

Batches = list[tuple[Tensor, Tensor]]

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
        weights: Its weights as `torch.save` writes them, where it was trained by this job: bytes, because tensors
            sent between processes stay tied to the memory of the sender.
        surface: Its surface, where that was asked for.
    """

    result: RunResult
    weights: bytes | None = None
    surface: Surface | None = None


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
        result = measure(result, model, batches, on.measuring)
    surface = draw(job.spec, model, batches) if job.surface else None
    return Outcome(result, _serialised(trained.weights) if job.stored is None else None, surface)


def measure(result: RunResult, model: nn.Module, batches: Batches, how: Measuring) -> RunResult:
    """Add Hessian trace and largest eigenvalue of the training loss, on the labels trained with.

    Args:
        result: The run's numbers so far.
        model: Its trained network, in evaluation mode.
        batches: The training examples to measure on.
        how: With how many vectors; of which layers the authors' number is wanted too.

    Returns:
        The numbers with the curvature filled in, each with its error.
    """
    H = fm.Hessian(model, functional.cross_entropy, batches)
    trace = fm.trace(H, num_matvecs=how.num_matvecs, seed=result.spec.seed)
    top = fm.top_eigenvalues(H, k=1, seed=result.spec.seed)
    found: dict[str, float] = {
        "trace": float(trace.value),
        "trace_stderr": float(trace.stderr),
        "top_eigenvalue": float(top.values[0]),
        "top_eigenvalue_residual": float(top.residuals[0]),
    }
    if how.authors_layers:
        found["authors_lambda"] = _authors_lambda(model, batches, how.authors_layers, seed=result.spec.seed)
    return result.model_copy(update=found)


def _authors_lambda(model: nn.Module, batches: Batches, layers: str, *, seed: int) -> float:
    """Return the mean over batches, each with a maximum of its own, as the authors take it."""
    each = (fm.Hessian(model, functional.cross_entropy, [batch]) for batch in batches)
    return fmean(authors_lambda(H, layers=layers, seed=seed).value for H in each)


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
    plane = surface(model, functional.cross_entropy, batches, coordinates=coordinates, seed=spec.seed)
    return Surface(
        task=spec.task,
        method=spec.method,
        seed=spec.seed,
        coordinates=tuple(coordinates.tolist()),
        loss=tuple(tuple(row) for row in plane.loss.tolist()),
    )


def _serialised(weights: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def _reload(result: RunResult, weights: Path | None) -> Trained:
    if weights is None:
        return Trained(result, {})
    return Trained(result, torch.load(weights, map_location="cpu", weights_only=True))
