"""Walks of Figure 3: RS, SA or SGD from a given start at a constant learning rate, looked at along the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

import flatmin as fm
from flatmin.errors import NonFiniteError
from flatmin_lab.data.splits import Split, Splits, outputs
from flatmin_lab.seeds import derive, generator
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from torch import Tensor, nn

EVALUATIONS = {"SGD": 1, "RS": 2, "SA": 2}
"""Gradients of a mini-batch that a step takes."""


class Asked(Value):
    """One walk: everything that its numbers depend on.

    Attributes:
        method: A key of `EVALUATIONS`.
        batch_size: Examples behind one gradient.
        rho: Length of the perturbation; 0 for SGD.
        seed: Of the order of batches, and of the perturbations.
        num_steps: How far.
        learning_rate: The same at all steps.
        origin: A hash of start, data and code.
    """

    method: str
    batch_size: int
    rho: float
    seed: int
    num_steps: int
    learning_rate: float
    origin: str

    @property
    def name(self) -> str:
        """A readable name."""
        radius = f"-rho{self.rho:g}" if self.rho else ""
        return f"{self.method}-batch{self.batch_size}{radius}-seed{self.seed}"


class Look(Value):
    """What a walk is at one step.

    Attributes:
        step: Steps made.
        gradients: Gradients of mini-batches evaluated.
        train_loss: Mean over the training data.
        train_accuracy: Between 0 and 1, as the others.
        validation_accuracy: What radii are chosen by.
        test_accuracy: What the figure shows.
        trace: Of the Hessian of the training loss, on the first examples; None where it was not measured.
        trace_stderr: Its standard error.
    """

    step: int
    gradients: int
    train_loss: float
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    trace: float | None = None
    trace_stderr: float | None = None


class Walk(Value):
    """A walk that is over.

    Attributes:
        asked: What was asked for.
        looks: In the order of the steps, the first at the start; fewer than asked for where it left the finite numbers.
        seconds: Spent in steps.
    """

    asked: Asked
    looks: tuple[Look, ...]
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether it left the finite numbers."""
        return self.looks[-1].step < self.asked.num_steps


@dataclass(frozen=True)
class Observer:
    """How networks are looked at; it changes nothing.

    Attributes:
        splits: Training, validation and test data.
        measured: Training examples behind the trace, the first ones.
        num_matvecs: Random vectors behind the trace.
        seed: Of the vectors, which are the same at every look.
    """

    splits: Splits
    measured: int
    num_matvecs: int
    seed: int

    _AT_ONCE = 250

    def look(self, model: nn.Module, step: int = 0, gradients: int = 0, *, trace: bool = True) -> Look:
        """Look at a network.

        Args:
            model: The network.
            step: At which.
            gradients: Evaluated so far.
            trace: Whether the trace is wanted, which costs most.
        """
        found: dict[str, float] = {}
        if trace:
            batches = self.splits.train[: self.measured].batches(self._AT_ONCE)
            H = fm.Hessian(model, functional.cross_entropy, batches)
            estimate = fm.trace(H, num_matvecs=self.num_matvecs, seed=self.seed)
            found = {"trace": float(estimate.value), "trace_stderr": float(estimate.stderr)}
        train_loss, train_accuracy = self._score(model, self.splits.train)
        return Look(
            step=step,
            gradients=gradients,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_accuracy=self._score(model, self.splits.validation)[1],
            test_accuracy=self._score(model, self.splits.test)[1],
            **found,
        )

    @torch.no_grad()
    def _score(self, model: nn.Module, split: Split) -> tuple[float, float]:
        """Mean loss and accuracy of a network without running statistics."""
        logits = torch.cat([outputs(model, piece.inputs) for piece in split.pieces(self._AT_ONCE)])
        hits = (logits.argmax(1) == split.targets).float().mean()
        return float(functional.cross_entropy(logits, split.targets)), float(hits)


def look_steps(num_steps: int, looks: int) -> list[int]:
    """The steps at which a walk is looked at after its start, the last included.

    Example:
        >>> look_steps(100, 4)
        [25, 50, 75, 100]
    """
    return np.unique(np.linspace(0, num_steps, looks + 1).round().astype(int))[1:].tolist()


def walk(
    model: nn.Module,
    asked: Asked,
    observer: Observer,
    first: Look,
    *,
    looks: int,
    traces: int,
    watch: Callable[[int], object] = lambda _: None,
) -> Walk:
    """Walk, changing the model in place.

    Args:
        model: At the start.
        asked: By which method, and how far.
        observer: Looks along the way.
        first: What it sees at the start, equal for all walks.
        looks: Number of looks after the start.
        traces: At how many of them the trace is measured; it divides ``looks``.
        watch: Told how many steps are made.
    """
    optimizer, at = _optimizer(model, asked), look_steps(asked.num_steps, looks)
    traced, seen, gradients, seconds = set(at[:: -max(1, looks // traces)]), [first], 0, 0.0
    batches = _batches(observer.splits.train, asked.batch_size, generator(asked.seed, "fig3: batch order"))
    for step, batch in zip(range(1, asked.num_steps + 1), batches, strict=False):

        def closure(batch: Split = batch) -> Tensor:
            nonlocal gradients
            gradients += 1  # counted here, where it happens
            optimizer.zero_grad()
            loss = functional.cross_entropy(outputs(model, batch.inputs), batch.targets)
            loss.backward()
            return loss

        begin = time.perf_counter()
        try:
            optimizer.step(closure)
        except NonFiniteError:
            break
        seconds += time.perf_counter() - begin
        if step in at:
            seen.append(observer.look(model, step, gradients, trace=step in traced))
            watch(step)
            if not math.isfinite(seen[-1].train_loss):  # found by the optimizer on a CPU, here on an accelerator
                seen.pop()
                break
    return Walk(asked=asked, looks=tuple(seen), seconds=round(seconds, 2))


def _optimizer(model: nn.Module, asked: Asked) -> Any:
    base = torch.optim.SGD(model.parameters(), lr=asked.learning_rate)
    seed = derive(asked.seed, "fig3: perturbations")
    if asked.method == "RS":
        return fm.RandomlySmoothed(base, rho=asked.rho, seed=seed, model=model)
    if asked.method == "SA":
        return fm.SharpnessAware(base, rho=asked.rho, seed=seed, model=model)
    return base


def _batches(split: Split, size: int, source: torch.Generator) -> Iterator[Split]:
    """Epoch after epoch in an order that ``source`` alone decides, without the last few that make no whole batch."""
    size = min(size, len(split))
    while True:
        for chosen in torch.randperm(len(split), generator=source).split(size):
            if len(chosen) == size:
                yield split[chosen.to(split.targets.device)]
