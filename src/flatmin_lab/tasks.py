"""The registry of tasks: data, network and the one published training setting that every method gets.

Importing this file loads neither torch nor data, so that the command line can name the tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from flatmin_lab.data.splits import Batches, Split, Splits
    from flatmin_lab.methods import Method
    from flatmin_lab.spec import Changes

VERSION = 1
"""Raised whenever a task's data, network or setting changes: stored runs of another version cannot be continued."""


@dataclass(frozen=True)
class Setting:
    """The base optimizer, equal for all methods, its learning rate falling to zero as a cosine.

    Attributes:
        learning_rate: At the first step.
        momentum: Of SGD; AdamW keeps its own two means, (0.9, 0.999).
        batch_size: Examples behind one gradient.
        weight_decay: Of SGD a term of the gradient, of AdamW apart from it.
        optimizer: Which.
        augmentation: How the examples of a batch are changed at random; the empty text for not at all.
        distance_penalty: Strength of half the squared distance to the first weights, a term of the loss.
    """

    learning_rate: float
    momentum: float
    batch_size: int
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    augmentation: str = ""
    distance_penalty: float = 0.0

    def changed(self, changes: Changes) -> Setting:
        """The setting with some of its numbers replaced."""
        return replace(self, **{name: value for name, value in changes if value is not None})

    def base(self, parameters: Iterable[Tensor]) -> Optimizer:
        """The base optimizer of ``parameters``."""
        from torch.optim import SGD, AdamW

        if self.optimizer == "adamw":
            return AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        return SGD(parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Measuring:
    """How a task's runs are looked at while they train and afterwards; it changes no weight.

    Attributes:
        points: Length of a run's history, about.
        batch_size: Examples in one forward pass.
        examples: Training examples behind the curvature, the first ones; None for all.
        num_matvecs: Random vectors behind the Hessian trace, where it is not exact; its standard error says whether
            they were enough.
        authors_layers: The layers of what the NSO paper calls λ₁ (``flatmin.curvature.legacy``); empty for no such
            number.
        surface: Whether the loss surfaces of a few runs are drawn.
        along: Standard deviation of the noise of the perturbation gap, where gap, trace and test loss are wanted at
            every point of the history; None where they are not.
    """

    points: int = 30
    batch_size: int = 1000
    examples: int | None = None
    num_matvecs: int = 50
    authors_layers: str = ""
    surface: bool = True
    along: float | None = None


def _cross_entropy(output: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(output, targets, label_smoothing=label_smoothing)


def _classification(model: nn.Module, split: Split, batch_size: int) -> tuple[float, float]:
    import torch

    from flatmin_lab.data.splits import outputs

    logits = torch.cat([outputs(model, inputs) for inputs, _ in split.batches(batch_size)])
    hits = (logits.argmax(dim=1) == split.targets).float().mean()
    return float(_cross_entropy(logits, split.targets)), float(hits)


@dataclass(frozen=True)
class Task:
    """Something to train on.

    Attributes:
        name: As on the command line.
        summary: One line for people.
        load: Splits as a function of the seed alone (and of files that never change).
        network: The network as training begins: fresh, drawn from torch's global generator, or with given weights.
        setting: How the base optimizer is set.
        kind: The network's architecture.
        loss: Of outputs and targets, the mean over a batch: what is minimised and whose curvature is measured. Methods
            may call it with ``label_smoothing``.
        score: Given a network in evaluation mode, a split and a number of examples at a time: its mean loss, and its
            metric, between 0 and 1.
        metric: What the metric is called; results have it as their accuracy.
        measuring: How its runs are looked at.
        grids: Values tried instead of a method's own, by the method's name or by its hyperparameter's.
        files: What must lie under the data root, and where it is to be had.
    """

    name: str
    summary: str
    load: Callable[[int], Splits]
    network: Callable[[], nn.Module]
    setting: Setting
    kind: str = "mlp"
    loss: Callable[..., Tensor] = _cross_entropy
    score: Callable[[nn.Module, Split, int], tuple[float, float]] = _classification
    metric: str = "accuracy"
    measuring: Measuring = Measuring()
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def grid(self, method: Method) -> tuple[float, ...]:
        """The values of the method's hyperparameter that are tried on this task."""
        by_kind = self.grids.get(method.hyperparameter or "", method.grid)
        return self.grids.get(method.name, by_kind)

    def measured(self, train: Split) -> Batches:
        """The training examples that curvature is measured on, in batches."""
        return train[: self.measuring.examples].batches(self.measuring.batch_size)

    def require(self) -> None:
        """Say what is missing before anything starts.

        Raises:
            DataError: No data root is named, or a file is not there; the message says where it is to be had.
        """
        if not self.files:
            return
        from flatmin.errors import DataError
        from flatmin_lab.data.root import data_root, file_of

        for name, source in self.files.items():
            try:
                file_of(data_root(None), name)
            except DataError as error:
                raise DataError(f"The task {self.name} needs {name}, {source}. Here, {error}") from error


def task(name: str) -> Task:
    """Look up a task by its name.

    Args:
        name: One of `TASKS`.

    Returns:
        The task.

    Raises:
        ArgumentError: No task has this name; the message lists those there are and the nearest one.
    """
    from flatmin.checks import choice

    return TASKS[choice("task", name, TASKS)]


def _digits_clean(seed: int) -> Splits:
    from flatmin_lab.data.digits import digits_clean

    return digits_clean(seed)


def _digits_noisy(seed: int) -> Splits:
    from flatmin_lab.data.digits import digits_noisy

    return digits_noisy(seed)


def _mlp() -> nn.Module:
    from flatmin_lab.models.mlp import mlp

    return mlp()


def _small_mlp() -> nn.Module:
    from flatmin_lab.models.mlp import mlp

    return mlp((64, 32, 10))


def _cifar(seed: int) -> Splits:
    from flatmin_lab.data.cifar import drawn_splits

    return drawn_splits(seed)


def _resnet20() -> nn.Module:
    from flatmin_lab.data.root import data_root, file_of
    from flatmin_lab.models.loading import load_subject

    return load_subject(file_of(data_root(None), _RESNET20), kind="resnet20").model.train()


_DIGITS = Setting(learning_rate=0.02, momentum=0.9, batch_size=25)
_RESNET20 = "resnet20_cifar10.safetensors"

# Those of the NSO paper and of its authors' scripts, made as long as the others' where they are shorter.
_PUBLISHED_SIGMAS, _PUBLISHED_RHOS = (0.008, 0.01, 0.012, 0.014), (0.01, 0.02, 0.05, 0.1)
_FINE_TUNING = Task(
    "cifar10-jpeg75-resnet20",
    "ResNet-20 trained on CIFAR-10, fine-tuned on 2,000 of its images after JPEG; under the data root",
    _cifar,
    _resnet20,
    Setting(learning_rate=0.01, momentum=0.9, batch_size=32, weight_decay=1e-4),
    kind="resnet20",
    measuring=Measuring(points=5, batch_size=64, examples=256, authors_layers="conv", surface=False),
    grids={"sigma": _PUBLISHED_SIGMAS, "rho": _PUBLISHED_RHOS, "asam": (0.2, 0.5, 1.0, 2.0)},
    files={
        "cifar10_jpeg75.npz": "CIFAR-10 (www.cs.toronto.edu/~kriz/cifar.html) as JPEG of quality 75, in the layout of "
        "flatmin_lab.data.cifar",
        _RESNET20: "a ResNet-20 for 32 x 32 pixels trained on CIFAR-10, its weights called as in "
        "flatmin_lab.models.resnet_cifar",
    },
)

TASKS: dict[str, Task] = {
    t.name: t
    for t in (
        Task("digits-clean", "200 scanned digits", _digits_clean, _mlp, _DIGITS),
        Task("digits-noisy", "300 scanned digits, 30 % with a random label", _digits_noisy, _mlp, _DIGITS),
        Task(
            "digits-tiny",
            "200 scanned digits, a network of one hidden layer, in seconds",
            _digits_clean,
            _small_mlp,
            _DIGITS,
            measuring=Measuring(points=4, authors_layers="linear", surface=False),
        ),
        _FINE_TUNING,
    )
}

MAIN = ("digits-clean", "digits-noisy")
"""Those that are compared on if nothing else is said."""
