"""How well texts are found by their images, and images by their texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flatmin.checks import whole
from flatmin_lab.models.clip import contrastive

if TYPE_CHECKING:
    from flatmin_lab.data.splits import Split
    from flatmin_lab.models.clip import ImageTextPair


@dataclass(frozen=True)
class Recall:
    """Shares of the pairs whose partner is among the k most similar candidates.

    Attributes:
        image_to_text: Of images: their caption is among the k best of all *distinct* captions.
        text_to_image: Of captions: an image with this caption is among the k best of all images.
        by_chance: What image to text is for similarities drawn at random: k over the number of distinct captions.
    """

    image_to_text: float
    text_to_image: float
    by_chance: float

    @property
    def mean(self) -> float:
        """Of both directions."""
        return (self.image_to_text + self.text_to_image) / 2


@torch.no_grad()
def recall(model: ImageTextPair, split: Split, batch_size: int, k: int = 10) -> Recall:
    """Compute R@k over a whole split.

    Captions that read the same are one candidate, and images with the same caption are equally right for it. Where
    every caption occurs once this is the usual recall.

    Args:
        model: In evaluation mode, as a rule.
        split: Images and tokens, with the numbers of the captions as targets.
        batch_size: Of the forward passes, which has no effect on the result.
        k: Candidates that are looked at.

    Raises:
        ArgumentError: ``k`` is below 1.
    """
    whole("k", k, minimum=1, hint="It is the number of candidates that are looked at.")
    images, texts = _features(model, split, batch_size)
    # Of each distinct caption, the first pair that has it.
    targets = split.targets.cpu().numpy()
    _, first, caption = np.unique(targets, return_index=True, return_inverse=True)
    own = torch.from_numpy(caption).to(images.device)
    distinct = texts[torch.from_numpy(first).to(texts.device)]
    to_text = _hits(images, distinct, own.unsqueeze(1), torch.arange(len(distinct), device=own.device), k, batch_size)
    to_image = _hits(distinct, images, torch.arange(len(distinct), device=own.device).unsqueeze(1), own, k, batch_size)
    return Recall(
        image_to_text=float(to_text.float().mean()),
        text_to_image=float(to_image[own].float().mean()),
        by_chance=min(1.0, k / len(distinct)),
    )


def retrieval(model: ImageTextPair, split: Split, batch_size: int) -> tuple[float, float]:
    """Return the contrastive loss of a split, and the mean R@10 of both directions.

    Args:
        model: In evaluation mode, as a rule.
        split: Images and tokens, with the numbers of the captions as targets.
        batch_size: Pairs that the loss tells apart from each other; on it the loss depends.
    """
    images, texts = _features(model, split, batch_size)
    pieces = zip(images.split(batch_size), texts.split(batch_size), split.targets.split(batch_size), strict=True)
    with torch.no_grad():
        total = sum(float(contrastive(model.scale * (u @ v.T), t)) * len(t) for u, v, t in pieces)
    return total / len(split), recall(model, split, batch_size).mean


def _hits(queries: Tensor, candidates: Tensor, wanted: Tensor, kinds: Tensor, k: int, batch_size: int) -> Tensor:
    """Whether one of the k best candidates of each query is of the wanted kind."""
    found = []
    for query, kind in zip(queries.split(batch_size), wanted.split(batch_size), strict=True):
        best = (query @ candidates.T).topk(min(k, len(candidates)), dim=1).indices
        found.append((kinds[best] == kind).any(dim=1))
    return torch.cat(found)


@torch.no_grad()
def _features(model: ImageTextPair, split: Split, batch_size: int) -> tuple[Tensor, Tensor]:
    images, texts = [], []
    for piece in split.pieces(batch_size):
        pixels, tokens = piece.inputs
        images.append(model.image_features(pixels))
        texts.append(model.text_features(tokens))
    return torch.cat(images), torch.cat(texts)
