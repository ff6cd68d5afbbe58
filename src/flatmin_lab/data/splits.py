"""The three splits that every task provides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    Inputs = Tensor | tuple[Tensor, ...]
    Batches = list[tuple[Inputs, Tensor]]


@dataclass(frozen=True)
class Split:
    """Examples and their labels, in memory.

    Attributes:
        inputs: What the network is given: one tensor, or several for as many arguments; the first dimension is that
            of the examples.
        targets: What its outputs are compared with.
    """

    inputs: Inputs
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, chosen: Tensor | slice) -> Split:
        """The examples with these numbers."""
        return self._each(lambda tensor: tensor[chosen])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Split:
        return Split(changed(self.inputs, change), change(self.targets))

    @property
    def digest(self) -> str:
        """A hash of the examples and their labels, in their order."""
        content = hashlib.blake2b(digest_size=8)
        for tensor in (*parts(self.inputs), self.targets):
            content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def to(self, device: torch.device) -> Split:
        """Return the same examples on ``device``."""
        return self._each(lambda tensor: tensor.to(device))

    def pieces(self, size: int) -> list[Split]:
        """Return the examples in order, ``size`` at a time, the last few being fewer."""
        return [self[begin : begin + size] for begin in range(0, len(self), size)]

    def batches(self, size: int) -> Batches:
        """Return `pieces` as pairs, which is how curvature is measured."""
        return [(piece.inputs, piece.targets) for piece in self.pieces(size)]


def parts(inputs: Inputs) -> tuple[Tensor, ...]:
    """The arguments that a network is given."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def changed(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Change each argument of a network."""
    return tuple(map(change, inputs)) if isinstance(inputs, tuple) else change(inputs)


def outputs(model: nn.Module, inputs: Inputs) -> Any:
    """What a network makes of its arguments."""
    return model(*parts(inputs))


@dataclass(frozen=True)
class Splits:
    """What one seed of a task trains on, selects by, and is judged on.

    Attributes:
        train: The training examples, with the labels trained with.
        validation: For choosing hyperparameters; labels are clean.
        test: Looked at once, after training; labels are clean.
    """

    train: Split
    validation: Split
    test: Split

    @property
    def digest(self) -> str:
        """A hash of each split: of training, validation and test data."""
        return " ".join(split.digest for split in (self.train, self.validation, self.test))

    def to(self, device: torch.device) -> Splits:
        """Return the same splits on ``device``."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device))
