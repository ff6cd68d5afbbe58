"""Questions with an answer and the reasoning that leads to it.

- Geva et al. Did Aristotle use a laptop? arXiv:2101.02235 (StrategyQA); its facts are the rationales.
- Talmor et al. CommonsenseQA. arXiv:1811.00937; Aggarwal et al. Explanations for CommonsenseQA (ECQA), ACL 2021, with
  the short rationales of Chung et al. arXiv:2210.11416.
- Ho, Schmid, Yun. Large language models are reasoning teachers. arXiv:2212.10071, whose wording of prompts this is.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.errors import DataError
from flatmin_lab.data.archives import member
from flatmin_lab.data.text import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ARROW = " --> "
"""What stands between a rationale and its answer."""

_TSV, _DEV = "flan_cot_ecqa_train.tsv", "csqa_dev_rand_split.jsonl"


@dataclass(frozen=True)
class Reasoned:
    """A question that is answered after some reasoning.

    Attributes:
        question: With its options, if it has any.
        rationale: The reasoning.
        answer: A word, a number or the letter of an option.
    """

    question: str
    rationale: str
    answer: str

    @property
    def prompt(self) -> str:
        """What a language model is given."""
        return f"{self.question} ###"

    @property
    def completion(self) -> str:
        """What it is to write, the reasoning first.

        Example:
            >>> Reasoned("Is 3 odd?", "3 is 2 and 1.", "Yes").completion
            ' 3 is 2 and 1. --> Yes'
        """
        return f" {self.rationale}{self.conclusion}"

    @property
    def conclusion(self) -> str:
        """The end of the completion: its answer."""
        return f"{ARROW}{self.answer}"


def answer_in(completion: str) -> str | None:
    """Return the answer that a completion gives, or None where it gives none.

    Example:
        >>> answer_in(" 3 is 2 and 1. --> Yes "), answer_in(" 3 is 3 is 3 is")
        ('Yes', None)
    """
    _, arrow, answer = completion.partition(ARROW.strip())
    return answer.strip() if arrow else None


def strategyqa(root: Path, *, test: bool) -> list[Reasoned]:
    """Questions that take several steps to answer with yes or no.

    Args:
        root: Folder of the archive of texts.
        test: Whether the development questions (229), or those to train on (2,061).

    Raises:
        DataError: The archive is missing, damaged, or holds no such questions.
    """
    rows = json.loads(member(root, ARCHIVE, f"strategyqa_{'dev' if test else 'train'}.json"))
    return [
        Reasoned(row["question"], " ".join(map(_sentence, row["facts"])), "Yes" if row["answer"] else "No")
        for row in rows
    ]


def _sentence(fact: str) -> str:
    """A fact that ends as sentences do, with single spaces."""
    words = " ".join(fact.split())
    return words if words.endswith((".", "!", "?", '"')) else f"{words}."


def ecqa(root: Path, *, test: bool) -> list[Reasoned]:
    """Questions about everyday things with five options.

    The file of rationales holds questions of both parts of CommonsenseQA. Those of its development part (794) are the
    test here, so that none of them is trained on.

    Args:
        root: Folder of the archive of texts.
        test: Whether the questions of the development part, or the others (6,318).

    Raises:
        DataError: The archive is missing, damaged, or holds other tables.
    """
    development = member(root, ARCHIVE, _DEV).decode().splitlines()
    held_out = {_bare(json.loads(line)["question"]["stem"]) for line in development}
    found = []
    for number, line in enumerate(member(root, ARCHIVE, _TSV).decode().splitlines(), start=1):
        stem, listed, rest = line.partition("\\nOptions:\\n- ")  # the file has a backslash and an n
        options, *others = rest.split("\t")
        choices = options.split("\\n- ")
        if not listed or len(others) != 2 or others[0] not in choices:
            raise DataError(
                f"line {number} of {_TSV} is no question with options, their answer and a rationale, separated by "
                "tabs. Likely cause: it is another file, or was edited. Copy the archive again."
            )
        if (_bare(stem) in held_out) == test:
            found.append(_multiple_choice(stem, choices, *others))
    return found


def _multiple_choice(stem: str, choices: list[str], answer: str, rationale: str) -> Reasoned:
    letters = "ABCDEFGHIJ"
    listed = " ".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=False))
    return Reasoned(f"{stem} Answer Choices: {listed}", rationale, letters[choices.index(answer)])


def _bare(text: str) -> str:
    """A text without what two copies of it may differ in."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def sums(_: Path | None = None, *, test: bool) -> list[Reasoned]:
    """Sums of three digits, worked out in two steps; made up, so that they are always there.

    Args:
        test: Whether every fifth of the thousand, or the others.

    Example:
        >>> sums(test=True)[34]
        Reasoned(question='1+7+0', rationale='1+7=8 8+0=8', answer='8')
    """
    digits = range(10)
    return [
        Reasoned(f"{a}+{b}+{c}", f"{a}+{b}={a + b} {a + b}+{c}={a + b + c}", str(a + b + c))
        for a, b, c in itertools.product(digits, digits, digits)
        if ((a + 2 * b + 3 * c) % 5 == 0) == test
    ]


RATIONALES: dict[str, Callable[..., list[Reasoned]]] = {"sums": sums, "strategyqa": strategyqa, "ecqa": ecqa}
"""The data sets by name."""
