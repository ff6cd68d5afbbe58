"""Two towers, for images and for texts, that are trained to agree on pairs.

- Radford et al. Learning transferable visual models from natural language supervision. arXiv:2103.00020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatmin_lab.data.root import required
from flatmin_lab.models.text_folders import INSTALL

if TYPE_CHECKING:
    from flatmin_lab.data.tokens import Tokens


@dataclass(frozen=True)
class Shape:
    """Sizes of both towers, which are vision and text transformers of transformers' CLIP.

    Attributes:
        pixels: Height and width of the images.
        patch: Height and width of a patch.
        width: Of the tokens of both towers, and of what is compared.
        image_layers: Of the tower of images.
        text_layers: Of the tower of texts.
        heads: Of each layer.
        length: Tokens of a text.
        channels: Of the images.
    """

    pixels: int
    patch: int
    width: int
    image_layers: int
    text_layers: int
    heads: int
    length: int
    channels: int = 3


DIGITS = Shape(pixels=8, patch=2, width=32, image_layers=2, text_layers=1, heads=2, length=12, channels=1)
CIFAR = Shape(pixels=32, patch=4, width=64, image_layers=3, text_layers=2, heads=2, length=16)
VIT_S_16 = Shape(pixels=224, patch=16, width=384, image_layers=12, text_layers=12, heads=6, length=77)
"""The shape of that name in OpenCLIP, which the NSO paper trains."""


class ImageTextPair(nn.Module):
    r"""The pair, fresh from torch's global generator; causal texts are read at their first end.

    .. math:: z_{ij} = e^{t} \langle \hat u_i, \hat v_j \rangle, \quad e^t = 1 / 0.07 \text{ at first}

    with :math:`\hat u_i` and :math:`\hat v_j` the outputs of the towers for image i and text j, of length one.

    Args:
        shape: Sizes.
        tokens: What the texts are made of.
        read: What makes standardised images of bytes; None where they are standardised.

    Raises:
        MissingPackageError: transformers is not installed.

    Example:
        >>> from flatmin_lab.data.tokens import Vocabulary
        >>> words = Vocabulary(["zero", "one"])
        >>> pair = ImageTextPair(DIGITS, words)
        >>> pair(torch.zeros(2, 1, 8, 8), words.encode(["zero", "one"], DIGITS.length)).shape
        torch.Size([2, 2])
    """

    def __init__(self, shape: Shape, tokens: Tokens, *, read: nn.Module | None = None) -> None:
        super().__init__()
        self.read = nn.Identity() if read is None else read
        common = {
            "hidden_size": shape.width,
            "intermediate_size": 4 * shape.width,
            "num_attention_heads": shape.heads,
            "hidden_act": "gelu",
        }
        text = {
            "vocab_size": tokens.size,
            "max_position_embeddings": shape.length,
            "num_hidden_layers": shape.text_layers,
            "bos_token_id": 0,
            "eos_token_id": tokens.end,
            "pad_token_id": tokens.end,
        }
        image = {
            "image_size": shape.pixels,
            "patch_size": shape.patch,
            "num_channels": shape.channels,
            "num_hidden_layers": shape.image_layers,
        }
        transformers = required("transformers", "transformers", "builds this network", install=INSTALL)
        config = transformers.CLIPConfig(
            text_config=common | text,
            vision_config=common | image,
            projection_dim=shape.width,
            logit_scale_init_value=math.log(1 / 0.07),
            attn_implementation="eager",  # the others have no second derivative on a CPU
        )
        self.towers = transformers.CLIPModel(config).train()

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return similarities (images, texts).

        Args:
            images: As ``read`` wants them, shape (n, c, h, w).
            texts: Tokens, shape (m, length).
        """
        return self.scale * (self.image_features(images) @ self.text_features(texts).T)

    @property
    def scale(self) -> Tensor:
        """What similarities of directions are multiplied by, a parameter like all others."""
        return self.towers.logit_scale.exp()

    def image_features(self, images: Tensor) -> Tensor:
        """Return a direction for each image, shape (n, width)."""
        return functional.normalize(self.towers.get_image_features(self.read(images)).pooler_output, dim=1)

    def text_features(self, texts: Tensor) -> Tensor:
        """Return a direction for each text, shape (m, width)."""
        return functional.normalize(self.towers.get_text_features(texts).pooler_output, dim=1)


def contrastive(similarities: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:  # noqa: ARG001
    r"""The loss of a batch of pairs, in which every other text is wrong for an image and every other image for a text.

    .. math:: \frac1{2n} \sum_i \Big[ -\log \frac{e^{z_{ii}}}{\sum_j e^{z_{ij}}}
        -\log \frac{e^{z_{ii}}}{\sum_j e^{z_{ji}}} \Big]

    (arXiv:2103.00020, figure 3). It is no mean over examples: it depends on which pairs are in the batch, and on how
    many.

    Args:
        similarities: z, shape (n, n).
        targets: Not looked at; the pairs are the diagonal.
        label_smoothing: Share of the target that is spread over all.

    Example:
        >>> contrastive(torch.zeros(4, 4), torch.arange(4)).exp()
        tensor(4.)
    """
    diagonal = torch.arange(len(similarities), device=similarities.device)
    by_image = functional.cross_entropy(similarities, diagonal, label_smoothing=label_smoothing)
    by_text = functional.cross_entropy(similarities.T, diagonal, label_smoothing=label_smoothing)
    return (by_image + by_text) / 2
