"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn


def mlp(widths: Sequence[int] = (64, 256, 256, 10)) -> nn.Sequential:
    """Fully connected layers with GELU between them: smooth, so that its Hessian exists everywhere.

    Args:
        widths: Input width, hidden widths, output width.

    Returns:
        The network, initialised from torch's global generator as torch's own layers are.

    Example:
        >>> sum(p.numel() for p in mlp().parameters())
        85002
    """
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.GELU()]
    return nn.Sequential(*layers[:-1])
