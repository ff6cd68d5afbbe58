"""ResNet-18 for images of 32 x 32 pixels with group norm, which keeps no running statistics.

- He, Zhang, Ren, Sun. Deep residual learning for image recognition. arXiv:1512.03385, table 1 (18 layers).
- Wu and He. Group normalization. arXiv:1803.08494.
- Damian, Ma, Lee. Label noise SGD provably prefers flat global minimizers. arXiv:2106.06530 (this combination: a first
  convolution of 3 x 3 with stride 1, no pooling after it, 32 channels in a group).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatmin.checks import whole
from flatmin.errors import ArgumentError


class Block(nn.Module):
    """Two 3 x 3 convolutions with group norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, in_group: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(outputs // in_group, outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(outputs // in_group, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.GroupNorm(outputs // in_group, outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (n, outputs, h / stride, w / stride)."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class ResNetGN(nn.Module):
    """A convolution, four stages of two blocks, a mean over pixels, a linear layer.

    Args:
        num_classes: Outputs.
        width: Channels of the first stage; each further one has twice as many.
        in_group: Channels in a group; all groups have as many.

    Raises:
        ArgumentError: ``width`` is no multiple of ``in_group``.

    Example:
        >>> model = ResNetGN()
        >>> sum(p.numel() for p in model.parameters()), model.layer4[0].norm1.num_groups
        (11173962, 16)
        >>> ResNetGN(width=8, in_group=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, *, width: int = 64, in_group: int = 32) -> None:
        whole("width", width, minimum=1, hint="It is the number of channels of the first stage.")
        whole("in_group", in_group, minimum=1, hint="It is the number of channels in a group.")
        if width % in_group:
            raise ArgumentError(
                f"width is {width}, which groups of {in_group} channels do not divide. Take a multiple, or another "
                "in_group."
            )
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width // in_group, width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, 1, in_group)
        self.layer2 = _stage(width, 2 * width, 2, in_group)
        self.layer3 = _stage(2 * width, 4 * width, 2, in_group)
        self.layer4 = _stage(4 * width, 8 * width, 2, in_group)
        self.linear = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, num_classes) of images ``x`` (n, 3, 32, 32)."""
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(torch.mean(x, dim=(2, 3)))


def _stage(inputs: int, outputs: int, stride: int, in_group: int) -> nn.Sequential:
    return nn.Sequential(Block(inputs, outputs, stride, in_group), Block(outputs, outputs, 1, in_group))
