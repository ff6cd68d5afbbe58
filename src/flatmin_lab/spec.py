"""What is run, and what came of it, as values: typed, frozen, written as JSON, never as code or pickle."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flatmin_lab.search import Name as Search


class Value(BaseModel):
    """What is stored as JSON: frozen, without fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Changes(Value):
    """What a run does otherwise than its task's setting; None is as the task has it."""

    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    augmentation: str | None = Field(default=None, description="a key of flatmin_lab.data.augmentation.AUGMENTATIONS")
    distance_penalty: float | None = Field(
        default=None, description="strength of half the squared distance to the first weights, a term of the loss"
    )

    @property
    def name(self) -> str:
        """What is changed, readable: ``learning_rate=0.1,batch_size=8``; empty for nothing."""
        return ",".join(f"{k}={v if isinstance(v, str) else format(v, 'g')}" for k, v in self if v is not None)


class RunSpec(Value):
    """One training run. Everything that its numbers depend on is here; equal specifications give equal numbers."""

    task: str
    method: str
    value: float | None = Field(description="sigma, rho or alpha, by method; None for a method that has neither")
    seed: int
    budget: int = Field(description="gradient evaluations the run may use, whatever the method makes of them")
    device: str = "cpu"
    changes: Changes = Changes()

    @property
    def name(self) -> str:
        """A readable name: ``digits-noisy/nso-0.05/seed3``."""
        method = self.method if self.value is None else f"{self.method}-{self.value:g}"
        changes = f"+{self.changes.name}" if self.changes.name else ""
        return f"{self.task}/{method}{changes}/seed{self.seed}"

    @property
    def folder(self) -> str:
        """Where the run is kept among others: its name with the first digits of its `digest`."""
        return f"{self.name}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """A hash of the whole specification: what tells a stored result from one of another configuration.

        What is as it is by default does not enter, so that a new field leaves the hashes of older runs as they were.
        """
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:16]


class Point(Value):
    """One row of a training history."""

    evaluations: int = Field(description="gradient evaluations used so far")
    train_loss: float
    train_accuracy: float = Field(description="in [0, 1], on the labels trained with")
    validation_loss: float
    validation_accuracy: float
    live_trace: float | None = Field(default=None, description="live Hessian-trace estimate, of methods that give one")
    live_trace_stderr: float | None = None
    live_shares: dict[str, float] | None = Field(default=None, description="of each layer in the live trace")
    noise_to_signal: float | None = Field(
        default=None, description="how far the gradients at the points of a step lie apart, against their mean"
    )
    forward_passes: int | None = Field(default=None, description="of training, on this process")
    test_loss: float | None = Field(default=None, description="this and the rest of tasks that measure along the way")
    test_accuracy: float | None = None
    trace: float | None = None
    trace_stderr: float | None = None
    gap: float | None = Field(default=None, description="perturbation gap of the training loss")
    gap_stderr: float | None = None


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


class Arm(Value):
    """One row of a study: a method on a task, in one setting and with one budget."""

    task: str
    method: str
    budget: int = Field(description="gradient evaluations of each run")
    changes: Changes = Changes()
    values: tuple[float, ...] | None = Field(
        default=None, description="of sigma, rho or alpha, to choose from; None for those of the task or the method"
    )


class Study(Value):
    """What is run: arms over paired seeds."""

    arms: tuple[Arm, ...]
    seeds: int = Field(description="number of paired seeds")
    device: str = "cpu"
    first_seed: int = Field(default=0, description="the seeds are this one and those that follow")
    search: Search = Field(default="grid", description="how the values that are tried are found")

    @classmethod
    def crossed(cls, *, tasks: Iterable[str], methods: Iterable[str], budget: int, **others: Any) -> Study:
        """Every method on every task, all with one budget and each task's setting: ``flatmin compare``."""
        methods = tuple(methods)
        return cls(arms=tuple(Arm(task=t, method=m, budget=budget) for t in tasks for m in methods), **others)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of their first arms."""
        return tuple(dict.fromkeys(arm.task for arm in self.arms))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in the order of their first arms."""
        return tuple(dict.fromkeys(arm.method for arm in self.arms))

    @property
    def budgets(self) -> tuple[int, ...]:
        """The gradient evaluations of a run, in the order of the first arms that have them."""
        return tuple(dict.fromkeys(arm.budget for arm in self.arms))

    @property
    def run_seeds(self) -> range:
        """The seeds of the runs that are reported."""
        return range(self.first_seed, self.first_seed + self.seeds)


class Selection(Value):
    """How the value of one arm was chosen: by mean validation accuracy over the tuning seeds."""

    task: str
    method: str
    hyperparameter: Literal["sigma", "rho", "alpha"]
    grid: tuple[float, ...]
    validation_accuracies: tuple[float, ...] = Field(
        description="mean over the tuning seeds, in the grid's order; NaN for a value with which a run diverged"
    )
    chosen: float
    budget: int
    changes: Changes = Changes()


class Surface(Value):
    """Loss on a plane through one solution along two filter-normalised random directions."""

    task: str
    method: str
    seed: int
    coordinates: tuple[float, ...] = Field(description="positions along either direction, in filter norms")
    loss: tuple[tuple[float, ...], ...] = Field(description="loss[i][j] at coordinates[i], coordinates[j]")


class Comparison(Value):
    """Everything a report needs, from stored results alone."""

    spec: Study
    selections: tuple[Selection, ...]
    results: tuple[RunResult, ...] = Field(description="the final runs: chosen value, every seed")
    tuning: tuple[RunResult, ...] = Field(default=(), description="every value over the tuning seeds")
    surfaces: tuple[Surface, ...] = ()
    environment: dict[str, str] = {}
