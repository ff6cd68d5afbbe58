"""One use of a parameter in a batch, and the forms that many operations share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.curvature.ghost.examples import by_example
from flatmin.curvature.ghost.forms import Direct, Form, Outer, Rows
from flatmin.curvature.ghost.graph import saved, shape_of

if TYPE_CHECKING:
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
        return parts.sum(dims, keepdim=True) if dims else parts

    def outer(self, left: Rows, right: Rows, like: Tensor) -> Outer:
        """Return the form of a weight with these rows, computed in the type and on the device of ``like``."""
        return Outer(left, right, self.size, like.dtype, like.device, self.budget)

    def added(self, factor: float = 1.0) -> Form | None:
        """Return the form of a parameter that is added, ``factor`` times; None if its shape does not fit."""
        return (
            None
            if self.within is None
            else Direct(lambda c: self.reduced(c) if factor == 1 else self.reduced(c) * factor)
        )

    def multiplied(self, other: Tensor) -> Form | None:
        """Return the form of a parameter that multiplies ``other``; None if its shape does not fit."""
        return None if self.within is None else Direct(lambda cotangent: self.reduced(cotangent * other))

    def channels(self) -> Form:
        """Return the form of a parameter that is added to channels, dimension 1 of the output."""

        def gradient(cotangent: Tensor) -> Tensor:
            g = self.split(cotangent)
            return g.reshape(*g.shape[:3], -1).sum((1, 3))

        return Direct(gradient)
