"""Small networks without running statistics, whose weights are all there is to them."""

from __future__ import annotations

from torch import nn


def small_cnn(classes: int = 10) -> nn.Sequential:
    """Two convolutions and two linear layers for images of 28 x 28 pixels.

    Example:
        >>> sum(p.numel() for p in small_cnn().parameters())
        80202
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def small_fcn(pixels: int = 784, classes: int = 10, width: int = 256) -> nn.Sequential:
    """Two hidden layers for images of any shape.

    Example:
        >>> sum(p.numel() for p in small_fcn().parameters())
        269322
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )
