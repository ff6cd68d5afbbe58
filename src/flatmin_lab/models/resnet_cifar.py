"""Residual networks for images of 32 x 32 pixels.

- He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. arXiv:1512.03385, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTHS = (16, 32, 64)


class Shortcut(nn.Module):
    """The shortcut without parameters (option A): every second pixel, and zeros in the new channels.

    Args:
        new_channels: Channels to add, half of them before those there are.
        stride: Pixels between those taken.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.padding = new_channels // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (n, c, h, w), smaller and with more channels."""
        taken = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(taken, (0, 0, 0, 0, self.padding, self.padding))


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch-norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else Shortcut(outputs - inputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (n, outputs, h / stride, w / stride)."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class ResNetCifar(nn.Module):
    """A residual network of 6 n + 2 layers: a convolution, three stages of n blocks, a linear layer.

    Parameters are named ``conv1, bn1, layer1.0.conv1, ..., linear``.

    Args:
        blocks: n, blocks in each stage: 3 for ResNet-20, 9 for ResNet-56.
        num_classes: Outputs.

    Example:
        >>> model = ResNetCifar(3)
        >>> model(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in model.parameters())
        (torch.Size([2, 10]), 269722)
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], blocks, stride=2)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, num_classes) of images ``x`` (n, 3, 32, 32)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, dim=(2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))
