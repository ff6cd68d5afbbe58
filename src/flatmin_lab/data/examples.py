"""The data sets that a model can be measured on: some of their examples, as batches with their loss.

Importing this file loads neither torch nor data, so that the command line can name the data sets at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flatmin_lab.tasks import TASKS

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from flatmin.curvature.data import LossFunction
    from flatmin_lab.data.splits import Split as Rows

Part = Literal["train", "test"]

DATA: dict[str, str] = {
    **{name: task.summary for name, task in TASKS.items()},
    "cifar10-jpeg75": "CIFAR-10 compressed as JPEG, which is not CIFAR-10; under the data root",
    "mrpc": "pairs of sentences, paraphrases or not; under the data root",
    "strategyqa": "questions with the answer yes or no; under the data root",
}
"""The data sets by name, each with one line for people."""

TEXT = ("mrpc", "strategyqa")
"""Those of text, which need a tokenizer."""


@dataclass(frozen=True)
class Examples:
    """Batches to measure on.

    Attributes:
        batches: A list of pairs or mappings, on the CPU.
        loss_fn: The mean cross-entropy over a batch.
        count: Examples in all.
        available: Examples of that part of the data set, from which these were taken.
    """

    batches: list[Any]
    loss_fn: LossFunction
    count: int
    available: int


@dataclass(frozen=True)
class Wanted:
    """Which examples.

    Attributes:
        data: A key of `DATA`.
        part: Those to train on, or those to test with.
        examples: How many, at most. They are the first of one order that never changes.
        batch_size: In one batch.
        root: The data root; None for that of the environment.
        seed: Which split of a task; it matters for tasks alone.
    """

    data: str
    part: Part = "train"
    examples: int = 512
    batch_size: int = 128
    root: Path | None = None
    seed: int = 0


def load_examples(wanted: Wanted, tokenizer: Any = None) -> Examples:
    """Read the examples that are wanted.

    Args:
        wanted: Which.
        tokenizer: Makes text into numbers, as those of transformers do; needed for text.

    Returns:
        They, in batches.

    Raises:
        ArgumentError: A name is unknown, a number out of range, or text was asked for without a tokenizer.
        DataError: The data are not there.
    """
    from flatmin.checks import choice, whole

    choice("data", wanted.data, DATA)
    choice("split", wanted.part, ("train", "test"))
    whole("examples", wanted.examples, minimum=1, hint="It is the number of examples to measure on.")
    whole("batch_size", wanted.batch_size, minimum=1, hint="It is the number of examples in a batch.")
    if wanted.data in TEXT:
        return _texts(wanted, tokenizer)
    if tokenizer is not None:
        from flatmin.errors import ArgumentError

        raise ArgumentError(
            f"data is {wanted.data!r}, which is no text, but the model reads text. Take one of "
            f"{', '.join(map(repr, TEXT))}."
        )
    return _rows(wanted)


def _rows(wanted: Wanted) -> Examples:
    from torch.nn import functional

    rows, available = _images(wanted) if wanted.data == "cifar10-jpeg75" else _of_task(wanted)
    return Examples(rows.batches(wanted.batch_size), functional.cross_entropy, len(rows), available)


def _images(wanted: Wanted) -> tuple[Rows, int]:
    from flatmin_lab.data.cifar import cifar10_jpeg75
    from flatmin_lab.data.root import data_root

    available = []

    def choose(count: int) -> Tensor:
        available.append(count)
        return _first(wanted, count)

    rows = cifar10_jpeg75(data_root(wanted.root), choose, test=wanted.part == "test")
    return rows, available[0]


def _of_task(wanted: Wanted) -> tuple[Rows, int]:
    """All of a task's examples are in memory and in a random order already."""
    splits = TASKS[wanted.data].load(wanted.seed)
    rows = splits.train if wanted.part == "train" else splits.test
    return type(rows)(rows.inputs[: wanted.examples], rows.targets[: wanted.examples]), len(rows)


def _first(wanted: Wanted, count: int) -> Tensor:
    """Indices of the first examples in an order that depends on the data set alone."""
    import torch

    from flatmin_lab.seeds import generator

    return torch.randperm(count, generator=generator(0, f"{wanted.data}: examples"))[: wanted.examples]


def _texts(wanted: Wanted, tokenizer: Any) -> Examples:
    import torch

    from flatmin.errors import ArgumentError
    from flatmin_lab.data.root import data_root
    from flatmin_lab.data.text import TEXTS

    if tokenizer is None:
        raise ArgumentError(
            f"data is {wanted.data!r}, which is text, but the model has no tokenizer. Measure a folder of "
            "transformers, or choose other data."
        )
    everything = TEXTS[wanted.data](data_root(wanted.root), test=wanted.part == "test")
    sentences = everything.chosen(_first(wanted, len(everything)).tolist())
    batches = []
    for start in range(0, len(sentences), wanted.batch_size):
        several = sentences.chosen(list(range(start, min(start + wanted.batch_size, len(sentences)))))
        pairs = () if several.second is None else (list(several.second),)
        tokens = _tokens(tokenizer, list(several.first), *pairs)
        batches.append({**tokens, "labels": torch.tensor(several.labels)})
    return Examples(batches, _text_loss, len(sentences), len(everything))


def _tokens(tokenizer: Any, *texts: list[str]) -> dict[str, torch.Tensor]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads warn when a process is forked later
    return dict(tokenizer(*texts, padding=True, truncation=True, return_tensors="pt"))


def _text_loss(output: Any, batch: Mapping[str, Tensor]) -> Tensor:
    from torch.nn import functional

    return functional.cross_entropy(output.logits, batch["labels"])
