"""The three splits that every task provides."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Examples and their labels, in memory."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def digest(self) -> str:
        """A hash of the examples and their labels, in their order."""
        content = hashlib.blake2b(digest_size=8)
        for tensor in (self.inputs, self.targets):
            content.update(tensor.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()

    def to(self, device: torch.device) -> Split:
        """Return the same examples on ``device``."""
        return Split(self.inputs.to(device), self.targets.to(device))

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the examples in order, ``size`` at a time, the last few being fewer."""
        return list(zip(self.inputs.split(size), self.targets.split(size), strict=True))


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
