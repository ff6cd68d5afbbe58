"""Networks that take images as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and standard deviations of red, green and blue, from 0 to 1."""


class Pixels(nn.Module):
    r"""Standardises images of bytes, scales them, and hands them to a network.

    .. math:: x_c = (b_c / 255 - m_c) / s_c

    Images that are not bytes are taken as standardised already, and are scaled only.

    Args:
        network: What reads the images.
        mean: m, one number a channel.
        scale: s.
        pixels: Height and width that the network wants; None to leave images as they are. Larger ones are interpolated
            linearly, which is what Pillow does, but for its rounding to bytes.

    Example:
        >>> white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
        >>> Pixels(nn.Flatten(), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5))(white)
        tensor([[1., 1., 1., 1., 2., 2., 2., 2., 1., 1., 1., 1.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], scale: Sequence[float], *, pixels: int | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.pixels = pixels
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, *others: Tensor) -> Any:
        """Return what the network makes of images (n, c, h, w) and of its other arguments."""
        if images.dtype == torch.uint8:
            images = (images.to(self.mean.dtype) / 255 - self.mean) / self.scale
        if self.pixels is not None and images.shape[-2:] != (self.pixels, self.pixels):
            images = functional.interpolate(images, (self.pixels, self.pixels), mode="bilinear", antialias=True)
        return self.network(images, *others)
