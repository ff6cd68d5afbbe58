"""What is run, and what came of it, as values: typed, frozen, written as JSON, never as code or pickle."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """What is stored as JSON: frozen, without fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class RunSpec(Value):
    """One training run. Everything that its numbers depend on is here; equal specifications give equal numbers."""

    task: str
    method: str
    value: float | None = Field(description="sigma, rho or alpha, by method; None for a method that has neither")
    seed: int
    budget: int = Field(description="gradient evaluations the run may use, whatever the method makes of them")
    device: str = "cpu"

    @property
    def name(self) -> str:
        """A readable name that is also the run's folder: ``digits-noisy/nso-0.05/seed3``."""
        method = self.method if self.value is None else f"{self.method}-{self.value:g}"
        return f"{self.task}/{method}/seed{self.seed}"

    @property
    def digest(self) -> str:
        """A hash of the whole specification: what tells a stored result from one of another configuration."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Point(Value):
    """One row of a training history."""

    evaluations: int = Field(description="gradient evaluations used so far")
    train_loss: float
    train_accuracy: float = Field(description="in [0, 1], on the labels trained with")
    validation_loss: float
    validation_accuracy: float
    live_trace: float | None = Field(default=None, description="live Hessian-trace estimate, of methods that give one")
    live_trace_stderr: float | None = None


class RunResult(Value):
    """A finished run. The test split is looked at once, after training; tuning sees the validation numbers alone.

    A run that diverged is a result too: its accuracies and losses are NaN, and ``message`` says what happened.
    """

    spec: RunSpec
    status: Literal["finished", "diverged"] = "finished"
    message: str = ""
    test_accuracy: float
    test_loss: float
    train_accuracy: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float
    trace: float | None = Field(default=None, description="Hessian trace of the training loss; final runs only")
    trace_stderr: float | None = None
    top_eigenvalue: float | None = None
    top_eigenvalue_residual: float | None = None
    authors_lambda: float | None = Field(
        default=None, description="what the NSO paper calls λ₁, which is no eigenvalue: see flatmin.curvature.legacy"
    )
    seconds: float = Field(description="wall time of the training loop")
    gradient_evaluations: int
    splits: str = Field(default="", description="a hash of the data: training, validation and test examples, labels")
    history: tuple[Point, ...] = ()

    @classmethod
    def diverged(cls, spec: RunSpec, message: str, *, gradient_evaluations: int, seconds: float) -> RunResult:
        """The result of a run that reached NaN or infinity."""
        return cls(
            spec=spec,
            status="diverged",
            message=message,
            gradient_evaluations=gradient_evaluations,
            seconds=seconds,
            test_accuracy=math.nan,
            test_loss=math.nan,
            train_accuracy=math.nan,
            train_loss=math.nan,
            validation_accuracy=math.nan,
            validation_loss=math.nan,
        )


class CompareSpec(Value):
    """What ``flatmin compare`` was asked for."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int = Field(description="number of paired seeds")
    budget: int = Field(description="gradient evaluations of each run")
    device: str = "cpu"
    first_seed: int = Field(default=0, description="the seeds are this one and those that follow")

    @property
    def run_seeds(self) -> range:
        """The seeds of the runs that are reported."""
        return range(self.first_seed, self.first_seed + self.seeds)


class Selection(Value):
    """How one method's value was chosen on one task: by mean validation accuracy over the tuning seeds."""

    task: str
    method: str
    hyperparameter: Literal["sigma", "rho", "alpha"]
    grid: tuple[float, ...]
    validation_accuracies: tuple[float, ...] = Field(
        description="mean over the tuning seeds, in the grid's order; NaN for a value with which a run diverged"
    )
    chosen: float


class Surface(Value):
    """Loss on a plane through one solution along two filter-normalised random directions."""

    task: str
    method: str
    seed: int
    coordinates: tuple[float, ...] = Field(description="positions along either direction, in filter norms")
    loss: tuple[tuple[float, ...], ...] = Field(description="loss[i][j] at coordinates[i], coordinates[j]")


class Comparison(Value):
    """Everything a report needs, from stored results alone."""

    spec: CompareSpec
    selections: tuple[Selection, ...]
    results: tuple[RunResult, ...] = Field(description="the final runs: chosen value, every seed")
    surfaces: tuple[Surface, ...] = ()
    environment: dict[str, str] = {}
