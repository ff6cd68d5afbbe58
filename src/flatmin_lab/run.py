"""One training run: the same budget of gradient evaluations for every method, counted where they happen.

Training is written as a generator: it yields a `Point` of its history whenever it has one and returns the trained
weights with their numbers. Whoever drives it, in this process or in a worker, decides what to do with the points.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from flatmin.errors import ArgumentError, NonFiniteError
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.errors import DivergedError, LabError
from flatmin_lab.methods import Ingredients, Method, method
from flatmin_lab.seeds import derive, generator
from flatmin_lab.spec import Point, RunResult, RunSpec
from flatmin_lab.tasks import Measuring, Task, task


@dataclass(frozen=True)
class Trained:
    """A finished run and its weights, on the CPU."""

    result: RunResult
    weights: dict[str, Tensor]


def train(spec: RunSpec) -> Generator[Point, None, Trained]:
    """Train as ``spec`` says. One specification gives the same numbers bit for bit on one thread of one machine.

    Initial weights, splits and the order of batches depend on the seed alone, so that runs of different methods
    with one seed are a pair. torch's global generators are left as found.

    Args:
        spec: What to train.

    Yields:
        About as many points of the history as the task wants.

    Returns:
        The numbers and the weights.

    Raises:
        DivergedError: The loss became NaN or infinite.
        LabError: The method used another number of gradient evaluations than it declares.
    """
    device = usable_device(spec.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        training = _Training(spec, device)
        history = yield from training.steps()
        return training.finish(history)


def network(spec: RunSpec, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The network of a run, with ``weights`` or as it starts.

    Args:
        spec: Names the task, the seed and the device.
        weights: What `train` returned; None for the initial weights.

    Returns:
        The network on the run's device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(spec.seed, "initial weights"))
        model = task(spec.task).network()
    if weights is not None:
        model.load_state_dict(weights)
    return model.to(usable_device(spec.device))


def usable_device(name: str) -> torch.device:
    """Return the device called ``name``, or say why it cannot be used.

    Args:
        name: As torch names devices: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Returns:
        The device.

    Raises:
        ArgumentError: torch does not know the name, or the machine lacks the device.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0].rstrip(".")
        raise ArgumentError(
            f"device is {name!r}, but torch cannot use it here: {first_line}. "
            f"Either this machine lacks it or this torch ({torch.__version__}) was built without it. "
            "Take --device cpu, or install a build of torch for it."
        ) from error
    return device


@torch.no_grad()
def score(model: nn.Module, split: Split, batch_size: int = Measuring.batch_size) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of ``model`` in evaluation mode; draws nothing and changes nothing."""
    was_training = model.training
    model.eval()
    try:
        logits = torch.cat([model(inputs) for inputs, _ in split.batches(batch_size)])
    finally:
        model.train(was_training)
    hits = (logits.argmax(dim=1) == split.targets).float().mean()
    return float(functional.cross_entropy(logits, split.targets)), float(hits)


class _Training:
    """The state of one run while it trains."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self.spec = spec
        self.task: Task = task(spec.task)
        self.method: Method = method(spec.method)
        self.splits: Splits = self.task.load(spec.seed).to(device)
        self.model = network(spec)
        torch.manual_seed(derive(spec.seed, "forward passes"))
        setting = self.task.setting
        base = torch.optim.SGD(
            self.model.parameters(),
            lr=setting.learning_rate,
            momentum=setting.momentum,
            weight_decay=setting.weight_decay,
        )
        noise = derive(spec.seed, "perturbations")
        self.optimizer: Any = self.method.build(
            Ingredients(base, self.model, spec.value, noise, len(self.splits.train))
        )
        self.loss = self.method.loss(spec.value)
        self.num_steps = spec.budget // self.method.evaluations_per_step
        self.schedule = CosineAnnealingLR(self.optimizer, T_max=self.num_steps)
        self.batches = _batches(self.splits.train, setting.batch_size, generator(spec.seed, "batch order"))
        self.evaluations = 0
        self.seconds = 0.0

    def steps(self) -> Generator[Point, None, list[Point]]:
        history: list[Point] = []
        between = math.ceil(self.num_steps / self.task.measuring.points)
        for step in range(1, self.num_steps + 1):
            self._step()
            if step % between == 0 or step == self.num_steps:
                history.append(self._point())
                yield history[-1]
        return history

    def _step(self) -> None:
        batch = next(self.batches)

        def closure() -> Tensor:
            self.evaluations += 1  # counted here, where it happens: no method can cheat
            self.optimizer.zero_grad()
            loss = self.loss(self.model(batch.inputs), batch.targets)
            self._require_finite(float(loss.detach()))
            loss.backward()
            return loss

        begin = time.perf_counter()
        try:
            self.optimizer.step(closure)
        except NonFiniteError as error:
            raise self._diverged("the gradient became infinite or NaN") from error
        self.schedule.step()
        self.seconds += time.perf_counter() - begin

    def _score(self, split: Split) -> tuple[float, float]:
        return score(self.model, split, self.task.measuring.batch_size)

    def _point(self) -> Point:
        train_loss, train_accuracy = self._score(self.splits.train)
        validation_loss, validation_accuracy = self._score(self.splits.validation)
        self._require_finite(train_loss)
        live = getattr(self.optimizer, "trace_estimate", None)
        return Point(
            evaluations=self.evaluations,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            live_trace=None if live is None else _known(live.value),
            live_trace_stderr=None if live is None else _known(live.stderr),
        )

    def finish(self, history: list[Point]) -> Trained:
        declared = self.num_steps * self.method.evaluations_per_step
        if self.evaluations != declared:
            raise LabError(
                f"{self.spec.name} used {self.evaluations} gradient evaluations, but {declared} were its share. "
                f"Method {self.method.name!r} declares {self.method.evaluations_per_step} a step and calls its "
                "closure another number of times; correct its entry in flatmin_lab.methods."
            )
        last = history[-1]
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
            history=tuple(history),
        )
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}
        return Trained(result, weights)

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}")

    def _diverged(self, what: str) -> DivergedError:
        setting, way = self.task.setting, self.method
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


def _batches(split: Split, size: int, source: torch.Generator) -> Iterator[Split]:
    """Epoch after epoch in an order that ``source`` alone decides."""
    while True:
        for chosen in torch.randperm(len(split), generator=source).split(size):
            indices = chosen.to(split.targets.device)
            yield Split(split.inputs[indices], split.targets[indices])
