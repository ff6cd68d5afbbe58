"""One batch on its way: counted, read, and evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flatmin.errors import ArgumentTypeError, DataError

if TYPE_CHECKING:
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
class BatchLoss(Batch):
    """One batch, evaluated.

    Attributes:
        loss: Its mean loss, 0-dim, with its graph where one is recorded.
        output: What the model returned, with its graph likewise.
    """

    loss: Tensor
    output: Any


def check_depends(loss: Tensor) -> None:
    """Raise ArgumentTypeError unless ``loss`` has a graph."""
    if not loss.requires_grad:
        raise ArgumentTypeError(
            "the loss depends on no trainable parameter. Likely cause: detach(), .data or no_grad inside the model "
            "or the loss, or only frozen parameters are used."
        )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside mappings, sequences and dataclass-like model outputs, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from tensors_in(item)


def num_examples(batch: Any) -> int:
    """Return how many examples ``batch`` holds.

    Of a pair it is the first dimension of the targets, or else of the inputs; of a mapping, the one that most tensors
    have, so that positions (1, T) beside inputs and labels do not count.

    Raises:
        DataError: No tensor in it has a dimension, or the first dimension is empty.

    Example:
        >>> import torch
        >>> num_examples((torch.zeros(3, 5), torch.zeros(3)))
        3
        >>> num_examples({"positions": torch.zeros(1, 5), "x": torch.zeros(2, 5), "labels": [torch.zeros(2)]})
        2
    """
    parts = (batch,) if isinstance(batch, Mapping) else (batch[1], batch[0])
    found = (Counter(t.shape[0] for t in tensors_in(part) if t.dim() > 0) for part in parts)
    sizes = next(filter(None, found), None)
    if sizes is None:
        raise DataError(
            "a batch holds no tensor with a first dimension, so its examples cannot be counted, and a short last batch "
            "would weigh too much. Let targets be a tensor with one entry for each example."
        )
    size, _ = sizes.most_common(1)[0]
    if size == 0:
        raise DataError("a batch holds 0 examples, so that its mean loss is undefined. Leave empty batches out.")
    return size
