"""Questions with rationales as token sequences, at three sizes, and how well a language model answers them.

A sequence is a question, its rationale and its answer; the question is given, the others are learnt.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from flatmin.checks import choice
from flatmin_lab.data.drawing import drawn
from flatmin_lab.data.rationales import ARROW, RATIONALES, Reasoned, answer_in
from flatmin_lab.data.root import data_root
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.data.vocabularies import model_folder, own_tokenizer, tokenizer_in
from flatmin_lab.models.language import IGNORED, LanguageModel, pretrained_gpt, small_gpt, token_cross_entropy
from flatmin_lab.seeds import generator

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Corpus:
    """A data set of questions with rationales, the language model that learns it, and their sizes.

    Attributes:
        name: A key of `RATIONALES`.
        question: Tokens of a question, at most; what is longer loses its beginning.
        completion: Tokens of rationale and answer, at most; what is longer loses the end of the rationale. A model
            writes as many.
        num_train: Questions to train on; None for all that are not for validation.
        num_validation: Questions for validation.
        num_test: Test questions, of one random order; None for all.
        num_scored: Questions of a split, its first, that `score` looks at; None for all. Every token of an answer takes
            a pass through the model.
        folder: Of a pretrained model under the data root; the empty text for a fresh one with a vocabulary of its own.
        vocabulary: Tokens of the vocabulary of its own.
        width: Of the fresh model.
        layers: Of the fresh model.
    """

    name: str
    question: int
    completion: int
    num_train: int | None
    num_validation: int
    num_test: int | None = None
    num_scored: int | None = None
    folder: str = ""
    vocabulary: int = 0
    width: int = 128
    layers: int = 4

    @property
    def root(self) -> Path | None:
        """The data root, for data that are not made up."""
        return None if choice("data", self.name, RATIONALES) == "sums" else data_root(None)

    def tokenizer(self) -> Any:
        """That of the pretrained model, or one made from all questions that are not test questions."""
        if self.folder:
            return tokenizer_in(model_folder(data_root(None), self.folder))
        return _own_tokenizer(self, self.root)

    def splits(self, seed: int) -> Splits:
        """Draw training and validation questions; the test questions are the same for every seed.

        Args:
            seed: Chooses them.

        Returns:
            Tokens (n, length), and as targets the token after each, `IGNORED` where it is not part of rationale and
            answer.

        Raises:
            DataError: The data, or the folder of the pretrained model, are not there.
        """
        rest, test = _tokens(self, self.root)
        chosen = torch.randperm(len(test), generator=generator(0, f"{self.name}: test"))[: self.num_test]
        return drawn(self.name, seed, rest, test[chosen], num_train=self.num_train, num_validation=self.num_validation)

    def network(self) -> LanguageModel:
        """The language model before training: fresh from torch's global generator, or pretrained."""
        if self.folder:
            return pretrained_gpt(model_folder(data_root(None), self.folder))
        return small_gpt(len(self.tokenizer()), self.question + self.completion, width=self.width, layers=self.layers)

    @torch.no_grad()
    def score(self, model: nn.Module, split: Split, batch_size: int) -> tuple[float, float]:
        """How well a model, in evaluation mode, does on the first `num_scored` questions of a split.

        Args:
            model: What `network` made.
            split: Of `splits`.
            batch_size: Questions at a time.

        Returns:
            The mean cross-entropy over the tokens of rationales and answers, each given all true ones before it; and
            the share of questions that the model, given the question alone, writes the right answer to after a
            rationale of its own, the likeliest token at each step (greedily). A model that comes to no answer within
            `completion` tokens is given the arrow 8 tokens earlier, and answers then.
        """
        pieces = split[: self.num_scored].pieces(batch_size)
        sums = torch.tensor([self._sums(model, piece) for piece in pieces], dtype=torch.float64).sum(dim=0)
        loss, learnt, hits, questions = sums.tolist()
        return loss / learnt, hits / questions

    def _sums(self, model: nn.Module, piece: Split) -> tuple[float, int, int, int]:
        """The loss, the tokens it is summed over, the questions answered rightly, and all of them."""
        tokens, learnt = cast("Tensor", piece.inputs), piece.targets != IGNORED
        each = token_cross_entropy(model(tokens), piece.targets)
        # The token that predicts the first learnt one is the last that is given.
        lengths = (learnt.int().argmax(dim=1) + 1).tolist()
        prompts = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        truth = [self._answer(row[wanted]) for row, wanted in zip(piece.targets, learnt, strict=True)]
        hits = [
            ours == true for ours, true in zip(self._answers(cast("LanguageModel", model), prompts), truth, strict=True)
        ]
        count = int(learnt.sum())
        return float(each) * count, count, sum(hits), len(piece)

    def _answers(self, model: LanguageModel, prompts: list[Tensor]) -> list[str | None]:
        """What the model answers after a rationale; where it comes to no answer, what it writes after an arrow."""
        tokenizer = self.tokenizer()
        end = tokenizer.eos_token_id
        arrow = prompts[0].new_tensor(tokenizer(ARROW.rstrip())["input_ids"])
        written = model.written(prompts, most=self.completion, end=end)
        answers = [self._answer(row) for row in written]
        rationales = written[:, : self.completion - _CONCLUSION]
        open_ = [i for i, answer in enumerate(answers) if answer is None]
        if open_:
            asked = [torch.cat([prompts[i], rationales[i][rationales[i] != end], arrow]) for i in open_]
            for i, row in zip(open_, model.written(asked, most=_CONCLUSION - len(arrow), end=end), strict=True):
                answers[i] = self._answer(torch.cat([arrow, row]))
        return answers

    def _answer(self, tokens: Tensor) -> str | None:
        return answer_in(self.tokenizer().decode(tokens.tolist(), skip_special_tokens=True))


_CONCLUSION = 8
"""Tokens that are kept for an arrow and the answer after it."""


@functools.lru_cache(maxsize=2)
def _read(corpus: Corpus, root: Path | None) -> tuple[list[Reasoned], list[Reasoned]]:
    """The questions to train on and those to test with."""
    read = RATIONALES[corpus.name]
    return read(root, test=False), read(root, test=True)


@functools.lru_cache(maxsize=2)
def _own_tokenizer(corpus: Corpus, root: Path | None) -> Any:
    return own_tokenizer(tuple(r.prompt + r.completion for r in _read(corpus, root)[0]), corpus.vocabulary)


@functools.lru_cache(maxsize=2)  # a run asks for them twice, to train and to measure
def _tokens(corpus: Corpus, root: Path | None) -> tuple[Split, Split]:
    train, test = _read(corpus, root)
    return _sequences(corpus, train), _sequences(corpus, test)


def _sequences(corpus: Corpus, reasoned: list[Reasoned]) -> Split:
    tokenizer = corpus.tokenizer()
    end = tokenizer.eos_token_id
    prompts, rationales, conclusions = (
        tokenizer(texts)["input_ids"]
        for texts in (
            [r.prompt for r in reasoned],
            [f" {r.rationale}" for r in reasoned],
            [r.conclusion for r in reasoned],
        )
    )
    inputs = torch.full((len(reasoned), corpus.question + corpus.completion), end)
    targets = torch.full_like(inputs, IGNORED)
    for i, (prompt, rationale, conclusion) in enumerate(zip(prompts, rationales, conclusions, strict=True)):
        given = prompt[-corpus.question :]
        learnt = [*rationale[: corpus.completion - len(conclusion) - 1], *conclusion, end]
        whole = torch.tensor([*given, *learnt])
        inputs[i, : len(whole) - 1] = whole[:-1]
        targets[i, len(given) - 1 : len(whole) - 1] = whole[len(given) :]
    return Split(inputs, targets)


CORPORA: dict[tuple[str, str], Corpus] = {
    ("sums", "toy"): Corpus("sums", 6, 20, 600, 100, 100, 100, vocabulary=280, width=64, layers=2),
    ("strategyqa", "small"): Corpus("strategyqa", 26, 70, 1600, 229, None, 300, vocabulary=4000),
    ("ecqa", "small"): Corpus("ecqa", 60, 52, 2000, 300, 300, 300, vocabulary=4000),
    ("strategyqa", "paper"): Corpus("strategyqa", 64, 192, None, 229, None, 1000, folder="gpt2"),
    ("ecqa", "paper"): Corpus("ecqa", 128, 192, None, 600, None, 1000, folder="gpt2"),
}
"""By data set and size."""
