"""From a node of the graph and the place of a parameter in it to the form of its gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from flatmin.curvature.ghost.examples import by_example
from flatmin.curvature.ghost.forms import Direct, Form, Outer, Rows
from flatmin.curvature.ghost.graph import kind, saved, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from flatmin.curvature.ghost.examples import Axis
    from flatmin.curvature.ghost.uses import Use


@dataclass(frozen=True)
class Place:
    """One use of a parameter in a batch.

    Attributes:
        use: The use.
        axis: Where the node's output has its examples.
        size: How many.
        budget: Bytes for what is kept between cotangents.
    """

    use: Use
    axis: Axis
    size: int
    budget: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the node's output."""
        return shape_of(self.use.node) or ()

    def saved(self, name: str) -> Tensor:
        """Return a saved tensor, detached and of 32 bits or more."""
        value = saved(self.use.node, name).detach()
        return value if value.dtype.itemsize >= 4 else value.float()

    def split(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` as (examples, positions, ...), detached and of 32 bits or more."""
        tensor = tensor.detach()
        tensor = tensor if tensor.dtype.itemsize >= 4 else tensor.float()
        return by_example(tensor, self.axis, self.size)

    @property
    def within(self) -> tuple[int, ...] | None:
        """The parameter's shape, with ones in front, as it lies in :meth:`split` of the output; None if it does not."""
        shape = (1,) * (len(self.shape) - len(self.use.shape)) + self.use.shape
        if self.axis == "second":
            return (shape[0], *shape[2:]) if shape[1] == 1 else None
        return shape if shape[0] == 1 or self.size == 1 else None

    def reduced(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``, which has the shape of the output, summed over what the parameter was broadcast over."""
        parts = self.split(tensor)
        dims = [d for d, s in enumerate(self.within or (), start=1) if s == 1 and parts.shape[d] > 1]
        return parts.sum(dims) if dims else parts


def form_of(place: Place) -> Form | None:
    """Return the form of the gradients for one use of a parameter; None if there is none for its operation."""
    reader = _READERS.get(kind(place.use.node))
    return None if reader is None else reader(place)


def _outer(place: Place, left: Rows, right: Rows, like: Tensor) -> Outer:
    return Outer(left, right, place.size, like.dtype, like.device, place.budget)


def _sum(place: Place, factor: float = 1.0) -> Form | None:
    """A parameter that is added."""
    if place.within is None:
        return None

    return Direct(lambda cotangent: place.reduced(cotangent) * factor)


def _product(place: Place, other: Tensor) -> Form | None:
    """A parameter that multiplies ``other``."""
    if place.within is None:
        return None

    return Direct(lambda cotangent: place.reduced(cotangent * other))


def _add(place: Place, sign: float = 1.0) -> Form | None:
    alpha = saved(place.use.node, "alpha")
    return _sum(place, sign * float(1 if alpha is None else alpha) if place.use.operand == 1 else 1.0)


def _mul(place: Place) -> Form | None:
    other = saved(place.use.node, "self" if place.use.operand == 1 else "other")
    return None if other is None else _product(place, other.detach())


def _prelu(place: Place) -> Form | None:
    return _product(place, place.saved("self").clamp(max=0)) if place.use.operand == 1 else None


def _repeat(place: Place) -> Form | None:
    """A parameter that is repeated for every example."""
    if math.prod(place.shape) != place.size * math.prod(place.use.shape):
        return _sum(place) if kind(place.use.node) == "Expand" else None
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
    return _outer(place, left, right, a)


def _addmm(place: Place) -> Form | None:
    node = place.use.node
    if place.use.operand == 0:
        return _sum(place, float(saved(node, "beta")))
    if place.use.operand == 1:
        return None
    return _matrix(place, place.saved("mat1"), float(saved(node, "alpha")), transposed=place.use.transposed)


def _mm(place: Place) -> Form | None:
    if place.use.operand == 0:
        return None
    return _matrix(place, place.saved("self"), 1.0, transposed=place.use.transposed)


def _linear(place: Place) -> Form | None:
    if place.use.operand == 2:
        return _sum(place)
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


def _dtype(node: torch.autograd.graph.Node) -> torch.dtype:
    return node._input_metadata[0].dtype  # type: ignore[attr-defined]


def _batch_norm(place: Place) -> Form | None:
    node = place.use.node
    if saved(node, "training") is not False or place.axis != "first":
        return None
    if place.use.operand == 2:
        return _sum_channels(place)
    x = place.split(place.saved("input"))
    eps = saved(node, "eps") if saved(node, "eps") is not None else saved(node, "epsilon")
    mean, scale = place.saved("running_mean"), (place.saved("running_var") + eps).rsqrt()

    def gradient(cotangent: Tensor) -> Tensor:
        total, along = _channel_sums(place.split(cotangent), x)
        return scale * (along - mean * total).sum(1)

    return Direct(gradient)


def _group_norm(place: Place) -> Form | None:
    node = place.use.node
    if place.axis != "first":
        return None
    if place.use.operand == 2:
        return _sum_channels(place)
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


def _sum_channels(place: Place) -> Form:
    def gradient(cotangent: Tensor) -> Tensor:
        g = place.split(cotangent)
        return g.reshape(*g.shape[:3], -1).sum((1, 3))

    return Direct(gradient)


def _layer_norm(place: Place) -> Form | None:
    if place.use.operand == 2:
        return _sum(place)
    return _product(place, (place.saved("input") - place.saved("result1")) * place.saved("result2"))


def _rms_norm(place: Place) -> Form | None:
    return _product(place, place.saved("input") * place.saved("result1"))


@dataclass(frozen=True)
class _Windows:
    """How a convolution's kernel slides, in any number of dimensions."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    out: Sequence[int]

    def of(self, x: Tensor, groups: int) -> Tensor:
        """Return the windows of ``x`` (examples, positions, channels, ...) as (examples, groups, places, values)."""
        n, r, c = x.shape[:3]
        k = math.prod(self.kernel)
        rows = x.reshape(n * r, c, *x.shape[3:])
        rows = functional.pad(rows, [p for pad in reversed(self.padding) for p in (pad, pad)]).contiguous()
        size, step = rows.shape, rows.stride()
        within = [t * d for t, d in zip(step[2:], self.dilation, strict=True)]
        between = [t * s for t, s in zip(step[2:], self.stride, strict=True)]
        # Copying a view is several times faster than functional.unfold, and knows any number of dimensions.
        view = rows.as_strided((*size[:2], *self.kernel, *self.out), (*step[:2], *within, *between))
        columns = view.reshape(n, r, groups, c // groups * k, -1)
        return (columns[:, 0] if r == 1 else columns.movedim(1, 3).flatten(3)).mT


def _convolution(place: Place) -> Form | None:
    node = place.use.node
    if place.axis == "second":
        return None
    if place.use.operand == 2:
        return _sum_channels(place)
    if place.use.operand != 1:
        return None
    x, groups, transposed = (
        place.split(place.saved("input")),
        int(saved(node, "groups")),
        bool(saved(node, "transposed")),
    )
    output = place.shape
    plain = x.shape[3:] if transposed else output[2:]
    windows = _Windows(
        place.use.shape[2:], saved(node, "stride"), saved(node, "padding"), saved(node, "dilation"), tuple(plain)
    )
    k, positions = math.prod(windows.kernel), x.shape[1] * math.prod(plain)

    def unfolded(t: Tensor) -> Tensor:
        return windows.of(t, groups)

    def flat(t: Tensor) -> Tensor:
        n, r, c = t.shape[:3]
        t = t.reshape(n, r, groups, c // groups, -1)
        return (t[:, 0] if r == 1 else t.movedim(1, 3).flatten(3)).mT

    of_inputs, of_outputs = (flat, unfolded) if transposed else (unfolded, flat)
    inner = (x.shape[2] // groups) * (1 if transposed else k)
    outer = (output[1] // groups) * (k if transposed else 1)

    def moving(cotangent: Tensor | None, examples: slice) -> Tensor:
        assert cotangent is not None  # noqa: S101
        return of_outputs(place.split(cotangent)[examples].to(x.dtype))

    fixed_rows = Rows(groups, positions, inner, lambda _, examples: of_inputs(x[examples]), moving=False)
    moving_rows = Rows(groups, positions, outer, moving, moving=True)
    left, right = (fixed_rows, moving_rows) if transposed else (moving_rows, fixed_rows)
    return _outer(place, left, right, x)


_READERS: dict[str, Callable[[Place], Form | None]] = {
    "Add": _add,
    "Addmm": _addmm,
    "Convolution": _convolution,
    "CudnnBatchNorm": _batch_norm,
    "Embedding": _embedding,
    "Expand": _repeat,
    "FusedRmsNorm": _rms_norm,
    "Linear": _linear,
    "Mm": _mm,
    "Mul": _mul,
    "NativeBatchNorm": _batch_norm,
    "NativeGroupNorm": _group_norm,
    "NativeLayerNorm": _layer_norm,
    "PreluKernel": _prelu,
    "Repeat": _repeat,
    "Sub": lambda place: _add(place, sign=-1.0),
}
