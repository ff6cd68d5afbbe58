"""One batch on its way: read, and evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatmin.errors import ArgumentTypeError

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.perturb.randomness import RandomState


@dataclass(frozen=True)
class Batch:
    """One batch, read.

    Attributes:
        content: The batch, on the device of the model.
        size: The number of its examples.
        index: Its place in the data.
        start: The random states that it is evaluated from.
    """

    content: Any
    size: int
    index: int
    start: RandomState


@dataclass(frozen=True)
class BatchLoss:
    """One batch, evaluated.

    Attributes:
        loss: Its mean loss, 0-dim, with its graph where one is recorded.
        size: The number of its examples.
        output: What the model returned, with its graph likewise.
        batch: The batch, on the device of the model.
        index: Its place in the data.
        start: The random states that it was evaluated from.
    """

    loss: Tensor
    size: int
    output: Any
    batch: Any
    index: int
    start: RandomState


def check_depends(loss: Tensor) -> None:
    """Raise ArgumentTypeError unless ``loss`` has a graph."""
    if not loss.requires_grad:
        raise ArgumentTypeError(
            "the loss depends on no trainable parameter. Likely cause: detach(), .data or no_grad inside the model "
            "or the loss, or only frozen parameters are used."
        )
