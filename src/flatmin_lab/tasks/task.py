"""What a task is: data, a network, and the one training setting that every method gets."""

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
        files: What must lie under the data root, and where it is to be had; or what gives it, where that loads more.
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
    files: Mapping[str, str] | Callable[[], Mapping[str, str]] = field(default_factory=dict)

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
        files = self.files() if callable(self.files) else self.files
        if not files:
            return
        from flatmin.errors import DataError
        from flatmin_lab.data.root import data_root, file_of

        for name, source in files.items():
            try:
                file_of(data_root(None), name)
            except DataError as error:
                raise DataError(f"The task {self.name} needs {name}, {source}. Here, {error}") from error
