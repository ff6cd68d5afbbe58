"""Whether a model and examples belong together, and how well they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatmin_lab.data.examples import Examples
    from flatmin_lab.models.loading import Subject


@torch.no_grad()
def accuracy(model: nn.Module, examples: Examples, device: torch.device) -> float:
    """Return the share of the examples that the model, which is on ``device``, classifies rightly."""
    hits = 0
    for batch in examples.batches:
        logits, targets = _predicted(model, batch, device)
        hits += int((logits.argmax(dim=1).cpu() == targets).sum())
    return hits / examples.count


def _predicted(model: nn.Module, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        return model(**inputs).logits, batch["labels"]
    return model(batch[0].to(device)), batch[1]


@torch.no_grad()
def check_fit(subject: Subject, examples: Examples, data: str) -> None:
    """Raise ArgumentError where the model cannot read the examples, or knows fewer classes."""
    try:
        logits, targets = _predicted(subject.model, examples.batches[0], torch.device("cpu"))
        classes = logits.shape[1]
    except (RuntimeError, IndexError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ArgumentError(
            f"data is {data!r}, but the {subject.kind} cannot read these examples: {first_line}. Choose other data "
            "with --data."
        ) from error
    if int(targets.max()) >= classes:
        raise ArgumentError(
            f"data is {data!r}, which has a class {int(targets.max())}, but the {subject.kind} knows {classes} "
            "classes, counted from 0. Choose other data with --data."
        )
