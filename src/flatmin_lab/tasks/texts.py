"""Language models: rationales that are learnt, and sentences that are classified."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from flatmin_lab.data.text_files import needed
from flatmin_lab.tasks.images import PUBLISHED_GRIDS
from flatmin_lab.tasks.task import Measuring, Setting, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatmin_lab.data.splits import Split, Splits


def _rationale_splits(key: tuple[str, str], seed: int) -> Splits:
    from flatmin_lab.data.corpora import CORPORA

    return CORPORA[key].splits(seed)


def _language_model(key: tuple[str, str]) -> nn.Module:
    from flatmin_lab.data.corpora import CORPORA

    return CORPORA[key].network()


def _answers(key: tuple[str, str], model: nn.Module, split: Split, batch_size: int) -> tuple[float, float]:
    from flatmin_lab.data.corpora import CORPORA

    return CORPORA[key].score(model, split, batch_size)


def _of_tokens(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    from flatmin_lab.models.language import token_cross_entropy

    return token_cross_entropy(logits, targets, label_smoothing=label_smoothing)


def _sentence_splits(key: tuple[str, str], seed: int) -> Splits:
    from flatmin_lab.data.sentences import CLASSIFICATIONS

    return CLASSIFICATIONS[key].splits(seed)


def _encoder(key: tuple[str, str]) -> nn.Module:
    from flatmin_lab.data.sentences import CLASSIFICATIONS

    return CLASSIFICATIONS[key].network()


def _adamw(learning_rate: float, batch_size: int) -> Setting:
    return Setting(learning_rate, momentum=0.9, batch_size=batch_size, weight_decay=1e-4, optimizer="adamw")


def _rationales(
    name: str, summary: str, key: tuple[str, str], setting: Setting, measuring: Measuring, *, files: dict[str, str]
) -> Task:
    return Task(
        name,
        summary,
        functools.partial(_rationale_splits, key),
        functools.partial(_language_model, key),
        setting,
        kind="gpt",
        loss=_of_tokens,
        score=functools.partial(_answers, key),
        metric="accuracy of answers",
        measuring=measuring,
        grids=PUBLISHED_GRIDS,
        files=files,
    )


def _sentences(
    name: str, summary: str, key: tuple[str, str], setting: Setting, measuring: Measuring, *, files: dict[str, str]
) -> Task:
    return Task(
        name,
        summary,
        functools.partial(_sentence_splits, key),
        functools.partial(_encoder, key),
        setting,
        kind="bert",
        measuring=measuring,
        grids=PUBLISHED_GRIDS,
        files=files,
    )


_TOY = Measuring(points=1, batch_size=16, examples=16, num_matvecs=5, surface=False)
_SMALL = Measuring(points=2, batch_size=16, examples=32, num_matvecs=20, surface=False)
_LARGE = Measuring(points=10, batch_size=4, examples=1000, num_matvecs=50, surface=False)
_ALONG = Measuring(points=5, batch_size=16, examples=32, num_matvecs=20, surface=False, along=0.01)

TEXTS = (
    _rationales(
        "sums-gpt",
        "sums of digits with their working, a small language model, in seconds",
        ("sums", "toy"),
        _adamw(3e-3, 32),
        _TOY,
        files={},
    ),
    _rationales(
        "strategyqa-gpt",
        "StrategyQA with rationales, a fresh language model of 1.3 million weights; under the data root",
        ("strategyqa", "small"),
        _adamw(1e-3, 8),
        _SMALL,
        files=needed(),
    ),
    _rationales(
        "ecqa-gpt",
        "CommonsenseQA with rationales (ECQA), a fresh language model; under the data root",
        ("ecqa", "small"),
        _adamw(1e-3, 8),
        _SMALL,
        files=needed(),
    ),
    _rationales(
        "strategyqa-gpt2",
        "StrategyQA with rationales, GPT-2 of 124 million weights; under the data root",
        ("strategyqa", "paper"),
        _adamw(3e-4, 8),
        _LARGE,
        files=needed("gpt2"),
    ),
    _rationales(
        "ecqa-gpt2",
        "CommonsenseQA with rationales (ECQA), GPT-2 of 124 million weights; under the data root",
        ("ecqa", "paper"),
        _adamw(3e-4, 8),
        _LARGE,
        files=needed("gpt2"),
    ),
    _sentences(
        "turns-bert-along",
        "who did it to whom, a small encoder, with curvature, gap and test loss at every point, in seconds",
        ("turns", "toy"),
        _adamw(1e-3, 16),
        replace(_TOY, points=2, along=0.01),
        files={},
    ),
    _sentences(
        "mrpc-minilm-along",
        "paraphrases (MRPC), MiniLM fine-tuned, with curvature, gap and test loss at every point; under the data root",
        ("mrpc", "small"),
        _adamw(5e-5, 16),
        _ALONG,
        files=needed("minilm"),
    ),
    _sentences(
        "creak-minilm-along",
        "statements that are true or not (CREAK), MiniLM fine-tuned, curvature at every point; under the data root",
        ("creak", "small"),
        _adamw(5e-5, 16),
        _ALONG,
        files=needed("minilm"),
    ),
    _sentences(
        "mrpc-bert-along",
        "paraphrases (MRPC), BERT-Base fine-tuned, curvature, gap and test loss at every point; under the data root",
        ("mrpc", "paper"),
        _adamw(1e-5, 8),
        replace(_LARGE, along=0.01),
        files=needed("bert-base-uncased"),
    ),
)
