"""Where the examples of a batch lie in a tensor, found by what one example's output depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Axis = Literal["first", "inner", "second"]
"""``"first"``: dimension 0 runs over examples, and within an example over positions. ``"inner"``: the other way round.
``"second"``: dimension 1 runs over examples alone."""

_AXES: tuple[Axis, ...] = ("first", "inner", "second")


def fits(shape: Sequence[int], axis: Axis, size: int) -> bool:
    """Tell whether a tensor of ``shape`` can hold ``size`` examples along ``axis``."""
    if axis == "second":
        return len(shape) > 1 and shape[1] == size
    return len(shape) > 0 and shape[0] > 0 and shape[0] % size == 0


def by_example(tensor: Tensor, axis: Axis, size: int) -> Tensor:
    """Return ``tensor`` as (examples, positions in dimension 0, remaining dimensions), a view.

    Example:
        >>> by_example(torch.tensor([0, 1, 2, 3]), "first", 2), by_example(torch.tensor([0, 1, 2, 3]), "inner", 2)
        (tensor([[0, 1],
                 [2, 3]]),
         tensor([[0, 2],
                 [1, 3]]))
    """
    if axis == "first":
        return tensor.unflatten(0, (size, -1))
    if axis == "inner":
        return tensor.unflatten(0, (-1, size)).transpose(0, 1)
    return tensor.transpose(0, 1)


def example_axis(gradients: Sequence[Tensor], size: int) -> Axis | None:
    """Return along which axis the i-th of ``gradients``, those of example i's output, is confined to example i.

    None if there is no such axis: this tensor does not belong to single examples.
    """
    for axis in _AXES:
        if fits(gradients[0].shape, axis, size) and all(
            _confined(by_example(g, axis, size), i) for i, g in enumerate(gradients)
        ):
            return axis
    return None


def _confined(gradient: Tensor, example: int) -> bool:
    energy = gradient.detach().flatten(1).abs().amax(1)
    return bool((energy.sum() - energy[example]) <= 1e-6 * energy[example])


def masked(cotangents: Sequence[Tensor], example: int) -> list[Tensor]:
    """Return ``cotangents`` with everything but one example set to zero, examples being their first dimension."""
    kept = [torch.zeros_like(c) for c in cotangents]
    for new, old in zip(kept, cotangents, strict=True):
        new[example] = old[example]
    return kept
