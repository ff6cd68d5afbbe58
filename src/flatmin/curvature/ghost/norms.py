"""Scales and shifts of normalisation layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flatmin.curvature.ghost.forms import Direct, Form
from flatmin.curvature.ghost.graph import saved

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.ghost.place import Place


def batch_norm(place: Place) -> Form | None:
    """Batch-norm by running statistics: scale and shift."""
    node = place.use.node
    if saved(node, "training") is not False or place.axis != "first":
        return None
    if place.use.operand == 2:
        return place.channels()
    x = place.split(place.saved("input"))
    eps = saved(node, "eps") if saved(node, "eps") is not None else saved(node, "epsilon")
    mean, scale = place.saved("running_mean"), (place.saved("running_var") + eps).rsqrt()

    def gradient(cotangent: Tensor) -> Tensor:
        total, along = _channel_sums(place.split(cotangent), x)
        return scale * (along - mean * total).sum(1)

    return Direct(gradient)


def group_norm(place: Place) -> Form | None:
    """Group norm: scale and shift."""
    node = place.use.node
    if place.axis != "first":
        return None
    if place.use.operand == 2:
        return place.channels()
    x = place.split(place.saved("input"))
    channels = x.shape[2]
    mean, scale = (
        place.split(place.saved(name)).repeat_interleave(channels // saved(node, "group"), dim=2)
        for name in ("result1", "result2")
    )

    def gradient(cotangent: Tensor) -> Tensor:
        total, along = _channel_sums(place.split(cotangent), x)
        return (scale * (along - mean * total)).sum(1)

    return Direct(gradient)


def _channel_sums(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ g and Σ g x over space, of tensors (examples, positions, channels, ...)."""
    g, x = (t.reshape(*t.shape[:3], -1) for t in (g, x))
    return g.sum(3), torch.linalg.vecdot(g, x)


def layer_norm(place: Place) -> Form | None:
    """Layer norm: scale and shift."""
    if place.use.operand == 2:
        return place.added()
    return place.multiplied((place.saved("input") - place.saved("result1")) * place.saved("result2"))


def rms_norm(place: Place) -> Form | None:
    """Root-mean-square norm, fused: scale."""
    return place.multiplied(place.saved("input") * place.saved("result1"))
