"""Convolutions as matrices that multiply windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from flatmin.curvature.ghost.forms import Form, Rows
from flatmin.curvature.ghost.graph import saved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flatmin.curvature.ghost.place import Place


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


def convolution(place: Place) -> Form | None:
    """Convolutions, transposed ones too, in any number of dimensions, with groups: weight and bias."""
    node = place.use.node
    if place.axis == "second":
        return None
    if place.use.operand == 2:
        return place.channels()
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
    return place.outer(left, right, x)
