"""Sentences with two classes, read from one archive of text data.

- Dolan and Brockett (2005). Automatically constructing a corpus of sentential paraphrases (MRPC).
- Geva et al. Did Aristotle use a laptop? arXiv:2101.02235 (StrategyQA).
- Onoe et al. CREAK: a dataset for commonsense reasoning over entity knowledge. arXiv:2109.01653.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.errors import DataError
from flatmin_lab.data.archives import member
from flatmin_lab.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARCHIVE = "text.tar.xz"
_NUM_TEST = 500
_CREAK, _ANSWERS = "flan_cot_creak_train.tsv", ("no", "yes")


@dataclass(frozen=True)
class Sentences:
    """Texts, each one sentence or a pair, and their classes.

    Attributes:
        first: The sentences.
        second: Their partners; None where sentences stand alone.
        labels: Classes, 0 or 1.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, indices: list[int]) -> Sentences:
        """Return those at ``indices``."""
        pick = lambda items: tuple(items[i] for i in indices)  # noqa: E731
        return Sentences(pick(self.first), None if self.second is None else pick(self.second), pick(self.labels))


def mrpc(root: Path, *, test: bool) -> Sentences:
    """Pairs of sentences from the news: 1 where the second says what the first does.

    The pairs are those of the original training file; 500 of them, the same always, are held out as test.

    Args:
        root: Folder of `ARCHIVE`.
        test: Whether the pairs held out, or the others.

    Raises:
        DataError: The archive is missing or damaged.
    """
    lines = member(root, ARCHIVE, "msr_paraphrase_train.txt").decode("utf-8-sig").splitlines()
    rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) == 5]
    whole = Sentences(
        tuple(row[3] for row in rows[1:]), tuple(row[4] for row in rows[1:]), tuple(int(row[0]) for row in rows[1:])
    )
    return _held_out("mrpc", whole, test=test)


def strategyqa(root: Path, *, test: bool) -> Sentences:
    """Questions that take several steps to answer: 1 where the answer is yes.

    Args:
        root: Folder of `ARCHIVE`.
        test: Whether the development questions, or those to train on.

    Raises:
        DataError: The archive is missing or damaged.
    """
    rows = json.loads(member(root, ARCHIVE, f"strategyqa_{'dev' if test else 'train'}.json"))
    return Sentences(tuple(row["question"] for row in rows), None, tuple(int(row["answer"]) for row in rows))


def creak(root: Path, *, test: bool) -> Sentences:
    """Claims about things and people: 1 where the claim is true.

    They are those of the original training file, of which 500, the same always, are held out as test. The file words a
    question around each claim; the claim alone is what is between its outermost quotation marks.

    Args:
        root: Folder of `ARCHIVE`.
        test: Whether the claims held out, or the others.

    Raises:
        DataError: The archive is missing or damaged, or holds another table.
    """
    claims, labels = [], []
    for number, line in enumerate(member(root, ARCHIVE, _CREAK).decode().splitlines(), start=1):
        question, _, rest = line.partition("\t")
        begin, end, answer = question.find('"'), question.rfind('"'), rest.partition("\t")[0]
        if end <= begin or answer not in _ANSWERS:
            raise DataError(
                f"line {number} of {_CREAK} is no claim in quotation marks with the answer yes or no, separated by a "
                "tab. Likely cause: it is another file, or was edited. Copy the archive again."
            )
        claims.append(question[begin + 1 : end])
        labels.append(_ANSWERS.index(answer))
    return _held_out("creak", Sentences(tuple(claims), None, tuple(labels)), test=test)


def _held_out(name: str, whole: Sentences, *, test: bool) -> Sentences:
    """Those that are held out as test, or the others, in one random order."""
    import torch

    order = torch.randperm(len(whole), generator=generator(0, f"{name}: test split")).tolist()
    return whole.chosen(order[:_NUM_TEST] if test else order[_NUM_TEST:])


TEXTS: dict[str, Callable[..., Sentences]] = {"mrpc": mrpc, "strategyqa": strategyqa, "creak": creak}
"""The data sets by name."""
