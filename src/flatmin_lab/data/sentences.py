"""Sentences with two classes as inputs of a pretrained encoder, and that encoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flatmin.checks import choice
from flatmin_lab.data.drawing import drawn
from flatmin_lab.data.root import data_root
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.data.text import TEXTS, Sentences
from flatmin_lab.data.vocabularies import encoded, model_folder, own_tokenizer, tokenizer_in
from flatmin_lab.models.encoder import SentenceClassifier, sentence_classifier, small_bert

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


_MADE_UP = "turns"


@dataclass(frozen=True)
class Classification:
    """A data set of sentences, the encoder that is fine-tuned on it, and their sizes.

    Attributes:
        name: A key of ``TEXTS``, or ``turns`` for sentences that are made up.
        length: Tokens of a sentence or a pair; what is longer is cut.
        num_train: Sentences to train on; None for all that are not for validation.
        num_validation: Sentences for validation.
        num_test: The first of the test sentences; None for all.
        folder: Of a pretrained encoder under the data root; the empty text for a small fresh one, which has a
            vocabulary of its own.
    """

    name: str
    length: int
    num_train: int | None
    num_validation: int
    num_test: int | None = None
    folder: str = ""

    @property
    def root(self) -> Path | None:
        """The data root, for data that are not made up."""
        return None if choice("data", self.name, (*TEXTS, _MADE_UP)) == _MADE_UP else data_root(None)

    def tokenizer(self) -> Any:
        """That of the encoder."""
        if self.folder:
            return tokenizer_in(model_folder(data_root(None), self.folder))
        known = _read(self, self.root)[0]
        return own_tokenizer((*known.first, *(known.second or ())), _VOCABULARY)

    def splits(self, seed: int) -> Splits:
        """Draw training and validation sentences; the test sentences are the same for every seed.

        Args:
            seed: Chooses them.

        Returns:
            As inputs the tokens of the sentences and their masks (n, length), and their classes.

        Raises:
            DataError: The data, or the folder of the encoder, are not there.
        """
        rest, test = _tokens(self, self.root)
        return drawn(
            self.name,
            seed,
            rest,
            test[: self.num_test],
            num_train=self.num_train,
            num_validation=self.num_validation,
        )

    def network(self) -> SentenceClassifier:
        """The encoder before training, its head, and whatever else is not pretrained, from torch's global generator."""
        if self.folder:
            return sentence_classifier(model_folder(data_root(None), self.folder))
        return small_bert(len(self.tokenizer()), self.length)


_VOCABULARY = 300
_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
_VERBS = ("sees", "hears", "helps", "calls", "meets", "likes")


def _turns(*, test: bool) -> Sentences:
    """Who did it to whom, in the active and the passive voice: 1 where both say the same."""
    first, second, labels = [], [], []
    rows = ((a, v, b, same) for a in _NAMES for v in _VERBS for b in _NAMES if a != b for same in (0, 1))
    for number, (a, verb, b, same) in enumerate(rows):
        if ((number // 2) % 5 == 0) == test:
            first.append(f"{a} {verb} {b}")
            second.append(f"{b} is who {a} {verb}" if same else f"{a} is who {b} {verb}")
            labels.append(same)
    return Sentences(tuple(first), tuple(second), tuple(labels))


@functools.lru_cache(maxsize=2)
def _read(task: Classification, root: Path | None) -> tuple[Sentences, Sentences]:
    """The sentences to train on and those to test with."""
    if root is None:
        return _turns(test=False), _turns(test=True)
    read = TEXTS[task.name]
    return read(root, test=False), read(root, test=True)


@functools.lru_cache(maxsize=2)  # a run asks for them twice, to train and to measure
def _tokens(task: Classification, root: Path | None) -> tuple[Split, Split]:
    tokenizer = task.tokenizer()
    train, test = (
        Split(encoded(tokenizer, sentences, task.length), torch.tensor(sentences.labels))
        for sentences in _read(task, root)
    )
    return train, test


CLASSIFICATIONS: dict[tuple[str, str], Classification] = {
    ("turns", "toy"): Classification(_MADE_UP, 16, 200, 100, 134),
    ("mrpc", "small"): Classification("mrpc", 64, 600, 300, folder="minilm"),
    ("creak", "small"): Classification("creak", 24, 600, 300, folder="minilm"),
    ("mrpc", "paper"): Classification("mrpc", 128, None, 400, folder="bert-base-uncased"),
    ("creak", "paper"): Classification("creak", 64, None, 600, folder="bert-base-uncased"),
}
"""By data set and size."""
