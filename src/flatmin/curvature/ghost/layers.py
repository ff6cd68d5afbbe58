"""From a node of the graph and the place of a parameter in it to the form of its gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.ghost.convolutions import convolution
from flatmin.curvature.ghost.forms import Direct, Form, Outer, Rows
from flatmin.curvature.ghost.graph import kind, saved
from flatmin.curvature.ghost.norms import batch_norm, group_norm, layer_norm, rms_norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.autograd.graph import Node

    from flatmin.curvature.ghost.place import Place


def form_of(place: Place) -> Form | None:
    """Return the form of the gradients for one use of a parameter; None if there is none for its operation."""
    reader = _READERS.get(kind(place.use.node))
    return None if reader is None else reader(place)


def _add(place: Place, sign: float = 1.0) -> Form | None:
    alpha = saved(place.use.node, "alpha")
    return place.added(sign * float(1 if alpha is None else alpha) if place.use.operand == 1 else 1.0)


def _mul(place: Place) -> Form | None:
    other = saved(place.use.node, "self" if place.use.operand == 1 else "other")
    return None if other is None else place.multiplied(other.detach())


def _prelu(place: Place) -> Form | None:
    return place.multiplied(place.saved("self").clamp(max=0)) if place.use.operand == 1 else None


def _repeat(place: Place) -> Form | None:
    """A parameter that is repeated for every example."""
    if math.prod(place.shape) != place.size * math.prod(place.use.shape):
        return place.added() if kind(place.use.node) == "Expand" else None
    return Direct(place.split)


def _matrix(place: Place, inputs: Tensor, factor: float, *, transposed: bool) -> Form:
    """A matrix that multiplies rows: ``inputs`` (rows, in) times a parameter (in, out)."""
    a = place.split(inputs).flatten(1, -2)[:, None]
    s, width, out = a.shape[2], a.shape[3], place.shape[-1]
    fixed = Rows(1, s, width, lambda _, examples: a[examples], moving=False)

    def read(cotangent: Tensor | None, examples: slice) -> Tensor:
        assert cotangent is not None  # noqa: S101
        rows = place.split(cotangent).flatten(1, -2)[examples, None].to(a.dtype)
        return rows if factor == 1 else rows * factor

    moving = Rows(1, s, out, read, moving=True)
    left, right = (moving, fixed) if transposed else (fixed, moving)
    return place.outer(left, right, a)


def _addmm(place: Place) -> Form | None:
    node = place.use.node
    if place.use.operand == 0:
        return place.added(float(saved(node, "beta")))
    if place.use.operand == 1:
        return None
    return _matrix(place, place.saved("mat1"), float(saved(node, "alpha")), transposed=place.use.transposed)


def _mm(place: Place) -> Form | None:
    if place.use.operand == 0:
        return None
    return _matrix(place, place.saved("self"), 1.0, transposed=place.use.transposed)


def _linear(place: Place) -> Form | None:
    if place.use.operand == 2:
        return place.added()
    return _matrix(place, place.saved("input"), 1.0, transposed=not place.use.transposed)


def _embedding(place: Place) -> Form | None:
    node = place.use.node
    index = place.split(saved(node, "indices")).flatten(1).long()
    padding, (vocabulary, width) = saved(node, "padding_idx"), place.use.shape
    if saved(node, "scale_grad_by_freq"):
        return None
    kept = (index != padding)[..., None]

    def read(cotangent: Tensor | None, examples: slice) -> Tensor:
        assert cotangent is not None  # noqa: S101
        rows = place.split(cotangent).flatten(1, -2)[examples]
        return (rows * kept[examples])[:, None]

    def unread(cotangent: Tensor | None, examples: slice) -> Tensor:
        raise NotImplementedError

    left = Rows(1, index.shape[1], vocabulary, unread, moving=False)
    right = Rows(1, index.shape[1], width, read, moving=True)
    dtype = torch.promote_types(_dtype(node), torch.float32)
    return Outer(left, right, place.size, dtype, index.device, place.budget, onehot=index)


def _dtype(node: Node) -> torch.dtype:
    return node._input_metadata[0].dtype  # type: ignore[attr-defined]


_READERS: dict[str, Callable[[Place], Form | None]] = {
    "Add": _add,
    "Addmm": _addmm,
    "Convolution": convolution,
    "CudnnBatchNorm": batch_norm,
    "Embedding": _embedding,
    "Expand": _repeat,
    "FusedRmsNorm": rms_norm,
    "Linear": _linear,
    "Mm": _mm,
    "Mul": _mul,
    "NativeBatchNorm": batch_norm,
    "NativeGroupNorm": group_norm,
    "NativeLayerNorm": layer_norm,
    "PreluKernel": _prelu,
    "Repeat": _repeat,
    "Sub": lambda place: _add(place, sign=-1.0),
}
