"""The state of one training run and its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from flatmin.checks import choice
from flatmin.errors import NonFiniteError
from flatmin.measures import Monitor
from flatmin_lab.data.splits import Split, Splits, outputs
from flatmin_lab.errors import DivergedError, LabError
from flatmin_lab.methods import Ingredients, Method, method
from flatmin_lab.seeds import derive, generator
from flatmin_lab.sharpness import trace_and_gap
from flatmin_lab.spec import Point, RunResult, RunSpec
from flatmin_lab.tasks import Task, task
from flatmin_lab.train.checkpoint import Checkpoints, state_of
from flatmin_lab.train.ranks import Alone

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatmin.regularizers import DistancePenalty


@dataclass(frozen=True)
class Trained:
    """A finished run and its weights, on the CPU."""

    result: RunResult
    weights: dict[str, Tensor]


class Training:
    """The state of one run while it trains.

    Args:
        spec: The run.
        device: Where it trains.
        model: The network as it starts.
        ranks: The processes that share the run; this one alone if not given.
    """

    def __init__(self, spec: RunSpec, device: torch.device, model: nn.Module, ranks: Alone | None = None) -> None:
        self.spec, self.device = spec, device
        self.task: Task = task(spec.task)
        self.method: Method = method(spec.method)
        self.setting = self.task.setting.changed(spec.changes)
        self.splits: Splits = self.task.load(spec.seed).to(device)
        self.ranks = ranks or Alone()
        self.model = model = self.ranks.spread(model)
        self.network = self.ranks.network(model)
        torch.manual_seed(derive(spec.seed, self.ranks.purpose("forward passes")))
        self.num_steps = spec.budget // self.method.evaluations_per_step
        given = Ingredients(
            base=self.setting.base(model.parameters()),
            model=model,
            value=spec.value,
            seed=derive(spec.seed, "perturbations"),
            num_examples=len(self.splits.train),
            num_steps=self.num_steps,
        )
        self.optimizer: Any = self.method.build(given)
        self.attachment = self.method.attach(given) if self.method.attach else None
        self.monitor = Monitor(self.attachment or self.optimizer, model)
        self.loss = self.method.loss(self.task.loss, spec.value)
        self.penalty = _penalty(model, self.setting.distance_penalty)
        self.augmenting = generator(spec.seed, "augmentation")
        self.augment = _augmentation(self.setting.augmentation, self.augmenting)
        self.schedule = CosineAnnealingLR(self.optimizer, T_max=self.num_steps)
        self.order = _order(len(self.splits.train), self.setting.batch_size, generator(spec.seed, "batch order"))
        self.batches = _batches(self.splits.train, self.order)
        self.history: list[Point] = []
        self.steps_made = self.evaluations = 0
        self.seconds = 0.0

    def steps(self, checkpoints: Checkpoints) -> Generator[Point, None, None]:
        """Train to the end; yield points of the history as they come."""
        between = math.ceil(self.num_steps / self.task.measuring.points)
        while self.steps_made < self.num_steps:
            is_point = (self.steps_made + 1) % between == 0 or self.steps_made + 1 == self.num_steps
            if is_point:
                self.monitor.prepare()
            self._step()
            self.steps_made += 1
            if is_point:
                self.history.append(self._point())
                yield self.history[-1]
            if self.ranks.any(checkpoints.is_due()):
                checkpoints.save(state_of(self))

    def _step(self) -> None:
        batch = self.augment(next(self.batches))
        pieces = batch.pieces(math.ceil(len(batch) / self.method.micro_batches))

        def closure() -> Tensor:
            self.evaluations += 1  # counted here, where it happens: no method can cheat
            self.optimizer.zero_grad()
            total = torch.zeros((), device=batch.targets.device)
            for piece in pieces:
                part, weight = self.ranks.share(piece)
                loss = self.loss(outputs(self.model, part.inputs), part.targets)
                seen = self.ranks.mean(loss.detach() * weight)
                self._require_finite(float(seen))
                share = len(piece) / len(batch)
                (loss if share * weight == 1 else loss * (share * weight)).backward()
                total += seen * share
            if self.penalty is not None:
                self.penalty().backward()
            return total

        begin, broken = time.perf_counter(), None
        try:
            self.optimizer.step(closure)
        except NonFiniteError as error:
            broken = error
        if self.ranks.any(broken is not None):  # the gradient of one shard may be, and that of others not
            raise self._diverged("the gradient became infinite or NaN") from broken
        self.schedule.step()
        self.seconds += time.perf_counter() - begin

    @torch.no_grad()
    def _score(self, split: Split) -> tuple[float, float]:
        """Mean loss and metric in evaluation mode; draws nothing and changes nothing."""
        was_training = self.network.training
        self.network.eval()
        try:
            return self.task.score(self.network, split, self.task.measuring.batch_size)
        finally:
            self.network.train(was_training)

    def _point(self) -> Point:
        train_loss, train_accuracy = self._score(self.splits.train)
        validation_loss, validation_accuracy = self._score(self.splits.validation)
        self._require_finite(train_loss)
        live = self.monitor.read()
        return Point(
            evaluations=self.evaluations,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            live_trace=None if live.trace is None else _known(live.trace.value),
            live_trace_stderr=None if live.trace is None else _known(live.trace.stderr),
            live_shares=dict(live.shares) or None,
            noise_to_signal=live.noise_to_signal,
            forward_passes=live.forward_passes,
            **self._along(),
        )

    def _along(self) -> dict[str, float]:
        """What tasks that are measured along the way know of a point besides."""
        sigma = self.task.measuring.along
        if sigma is None:
            return {}
        test_loss, test_accuracy = self._score(self.splits.test)
        on = self.task.measured(self.splits.train)
        found = trace_and_gap(self.network, self.task, on, sigma=sigma, seed=self.spec.seed)
        return {"test_loss": test_loss, "test_accuracy": test_accuracy, **found}

    def finish(self) -> Trained:
        """The numbers and the weights, once all steps are made."""
        declared = self.num_steps * self.method.evaluations_per_step
        if self.evaluations != declared:
            raise LabError(
                f"{self.spec.name} used {self.evaluations} gradient evaluations, but {declared} were its share. "
                f"Method {self.method.name!r} declares {self.method.evaluations_per_step} a step and calls its "
                "closure another number of times; correct its entry in flatmin_lab.methods."
            )
        self.monitor.close()
        if self.attachment is not None:
            self.attachment.remove()
        last = self.history[-1]
        test_loss, test_accuracy = self._score(self.splits.test)
        result = RunResult(
            spec=self.spec,
            test_accuracy=test_accuracy,
            test_loss=test_loss,
            train_accuracy=last.train_accuracy,
            train_loss=last.train_loss,
            validation_accuracy=last.validation_accuracy,
            validation_loss=last.validation_loss,
            seconds=self.seconds,
            gradient_evaluations=self.evaluations,
            splits=self.splits.digest,
            history=tuple(self.history),
        )
        whole = self.ranks.whole(self.network.state_dict())
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in whole.items()}
        return Trained(result, weights)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}")

    def _diverged(self, what: str) -> DivergedError:
        setting, way = self.setting, self.method
        knob = f"{way.hyperparameter} = {self.spec.value:g}" if way.hyperparameter else "no hyperparameter"
        too_large = f"{way.hyperparameter} or the" if way.hyperparameter else "the"
        return DivergedError(
            f"{self.spec.name}: {what} at gradient evaluation {self.evaluations} of {self.spec.budget} "
            f"(task {self.task.name!r}, method {way.name!r}, {knob}). Likely cause: {too_large} learning rate "
            f"{setting.learning_rate:g} is too large for this task. Take a smaller one.",
            gradient_evaluations=self.evaluations,
            seconds=self.seconds,
        )


def _known(value: float) -> float | None:
    """``value``, or None where it is NaN: a single sample has no standard error."""
    return None if math.isnan(value) else float(value)


def _order(count: int, size: int, source: torch.Generator) -> Iterator[Tensor]:
    """The examples of each batch, epoch after epoch, in an order that ``source`` alone decides."""
    while True:
        yield from torch.randperm(count, generator=source).split(size)


def _batches(split: Split, order: Iterator[Tensor]) -> Iterator[Split]:
    for chosen in order:
        yield split[chosen.to(split.targets.device)]


def _penalty(model: nn.Module, strength: float) -> DistancePenalty | None:
    from flatmin.regularizers import DistancePenalty

    return DistancePenalty(model, alpha=strength) if strength else None


def _augmentation(name: str, source: torch.Generator) -> Callable[[Split], Split]:
    """What changes a batch, once for all points of a step."""
    if not name:
        return lambda batch: batch
    from flatmin_lab.data.augmentation import AUGMENTATIONS

    augment = AUGMENTATIONS[choice("augmentation", name, AUGMENTATIONS)]
    return lambda batch: Split(augment(batch.inputs, source), batch.targets)
