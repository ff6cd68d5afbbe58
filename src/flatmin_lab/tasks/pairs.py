"""Images and texts that are to find each other."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

from flatmin_lab.tasks.images import PUBLISHED_GRIDS
from flatmin_lab.tasks.task import Measuring, Setting, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatmin_lab.data.splits import Split, Splits
    from flatmin_lab.models.clip import ImageTextPair


def _splits(data: str, seed: int) -> Splits:
    from flatmin_lab.data import captions, shards
    from flatmin_lab.data.root import data_root

    if data == "digits":
        return captions.captioned_digits(seed)
    return captions.captioned_cifar(seed) if data == "cifar" else shards.conceptual_captions(data_root(None), seed)


def _towers(data: str) -> nn.Module:
    from torch import nn

    from flatmin_lab.data import captions
    from flatmin_lab.data.root import data_root
    from flatmin_lab.data.tokens import Subwords
    from flatmin_lab.models import clip
    from flatmin_lab.models.pixels import IMAGENET, Pixels

    if data == "digits":
        return clip.ImageTextPair(clip.DIGITS, captions.DIGITS.vocabulary)
    if data == "cifar":
        return clip.ImageTextPair(clip.CIFAR, captions.CIFAR.vocabulary)
    read = Pixels(nn.Identity(), *IMAGENET)
    return clip.ImageTextPair(clip.VIT_S_16, Subwords(data_root(None)), read=read)


def _contrastive(similarities: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    from flatmin_lab.models.clip import contrastive

    return contrastive(similarities, targets, label_smoothing=label_smoothing)


def _retrieval(model: nn.Module, split: Split, batch_size: int) -> tuple[float, float]:
    from flatmin_lab.models.retrieval import retrieval

    return retrieval(cast("ImageTextPair", model), split, batch_size)


def _needed() -> dict[str, str]:
    from flatmin_lab.data.shards import FILES

    return FILES


def _pairs(name: str, summary: str, data: str, setting: Setting, measuring: Measuring, **others: object) -> Task:
    return Task(
        name,
        summary,
        functools.partial(_splits, data),
        functools.partial(_towers, data),
        setting,
        kind="clip",
        loss=_contrastive,
        score=_retrieval,
        metric="R@10",
        measuring=measuring,
        grids=PUBLISHED_GRIDS,
        **others,  # type: ignore[arg-type]
    )


def _adamw(learning_rate: float, batch_size: int) -> Setting:
    return Setting(learning_rate, momentum=0.9, batch_size=batch_size, weight_decay=0.1, optimizer="adamw")


PAIRS = (
    _pairs(
        "digits-pairs",
        "scanned digits and their captions, two small towers, in seconds",
        "digits",
        _adamw(2e-3, 32),
        Measuring(points=2, batch_size=32, examples=64, num_matvecs=10, surface=False),
    ),
    _pairs(
        "cifar10-jpeg75-pairs",
        "4,000 CIFAR-10 images after JPEG and their captions, two towers; under the data root",
        "cifar",
        _adamw(1e-3, 64),
        Measuring(points=2, batch_size=64, examples=256, num_matvecs=20, surface=False),
        files={
            "cifar10_jpeg75.npz": "CIFAR-10 (www.cs.toronto.edu/~kriz/cifar.html) as JPEG of quality 75, in the layout "
            "of flatmin_lab.data.cifar"
        },
    ),
    _pairs(
        "cc3m-pairs",
        "Conceptual Captions, ViT-S/16 and a tower of texts; under the data root",
        "cc3m",
        _adamw(1e-3, 128),
        Measuring(points=5, batch_size=16, examples=1600, num_matvecs=50, surface=False),
        files=_needed,
    ),
)
