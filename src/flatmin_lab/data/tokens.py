"""Captions as numbers: words of a small vocabulary, or the pieces of a tokenizer under the data root."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flatmin.errors import ArgumentError, DataError
from flatmin_lab.models.text_folders import read_folder

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZERS = ("clip-tokenizer", "gpt2")
"""Folders under the data root that may hold a tokenizer, the first one there being taken."""


class Tokens(Protocol):
    """Makes texts into rows of numbers that end with `end`.

    Attributes:
        size: Numbers are below it.
        end: The number after the last word, at which a text tower is read.
    """

    size: int
    end: int

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return numbers (n, length): begin, words, end, and ends up to the length. Longer texts are cut."""
        ...


class Vocabulary:
    """Words between spaces.

    Args:
        words: All there are.

    Example:
        >>> Vocabulary(["a", "dog"]).encode(["a dog", "dog"], length=5)
        tensor([[0, 1, 2, 3, 3],
                [0, 2, 3, 3, 3]])
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._numbers = {word: i for i, word in enumerate(sorted(set(words)), start=1)}
        self.end = len(self._numbers) + 1
        self.size = self.end + 1

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return numbers (n, length).

        Raises:
            ArgumentError: A word is not in the vocabulary.
        """
        unknown = {word for text in texts for word in text.split()} - self._numbers.keys()
        if unknown:
            raise ArgumentError(
                f"texts hold {min(unknown)!r}, which is not among the {len(self._numbers)} words of this vocabulary. "
                "Make the vocabulary of all texts."
            )
        return _framed([[self._numbers[word] for word in text.split()] for text in texts], length, [0], self.end)


class Subwords:
    """The pieces of a tokenizer of transformers.

    Args:
        root: The data root, which holds one of `TOKENIZERS`, as ``save_pretrained`` writes it.

    Raises:
        DataError: No such folder is there.
        WeightsError: It holds no tokenizer.
        MissingPackageError: transformers is not installed.
    """

    def __init__(self, root: Path) -> None:
        folder = next((root / name for name in TOKENIZERS if (root / name).is_dir()), None)
        if folder is None:
            raise DataError(
                f"{root / TOKENIZERS[0]} is missing. Needed is a folder with a tokenizer: hf download "
                f"openai/clip-vit-base-patch32 --include '*token*' --local-dir ROOT/{TOKENIZERS[0]}"
            )
        self._tokenizer = read_folder("AutoTokenizer", folder)
        self.end = int(self._tokenizer.eos_token_id)
        self.size = len(self._tokenizer)

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Return numbers (n, length)."""
        pieces = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        begin = self._tokenizer.bos_token_id
        # Where begin and end are one token (GPT-2), the first of them is where a text is read, so there is no begin.
        return _framed(pieces, length, [] if begin in (None, self.end) else [begin], self.end)


def _framed(rows: Iterable[list[int]], length: int, begin: list[int], end: int) -> Tensor:
    cut = [[*begin, *row][: length - 1] for row in rows]
    return torch.tensor([row + [end] * (length - len(row)) for row in cut]).view(-1, length)
