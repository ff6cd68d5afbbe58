"""The state of a model as a point: what differs between two solutions, and the way from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from torch import Tensor, nn

from flatmin.curvature.data import unwrapped
from flatmin.errors import ArgumentError, ArgumentTypeError


def difference(model: nn.Module, other: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the way from the weights of ``model`` to those of another solution: a step of 1 along it arrives there.

    Buffers of floating point go along, such as the statistics of batch normalisation: without them the far end would
    be another network than the one that was trained.

    Args:
        model: Where the way begins.
        other: A model of the same kind, or its state dict.

    Returns:
        Names to tensors, for all parameters and for buffers of floating point.

    Raises:
        ArgumentError: The other lacks a name or has a tensor of another shape.
        ArgumentTypeError: ``other`` is neither a model nor a state dict.

    Example:
        >>> import torch
        >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> way = difference(a, b)
        >>> torch.allclose(a.weight + way["weight"], b.weight)
        True
    """
    here = floating_state(unwrapped(model))
    there = state_like(here, other)
    return {name: there[name].to(tensor) - tensor.detach() for name, tensor in here.items()}


def floating_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and saved buffers of floating point by name, as they are; tensors that are shared once."""
    saved = model.state_dict().keys()  # other buffers are caches, which no other solution can be asked for
    everything = chain(model.named_parameters(), ((n, b) for n, b in model.named_buffers() if n in saved))
    return {name: tensor for name, tensor in everything if tensor.is_floating_point()}


def state_like(here: Mapping[str, Tensor], other: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of another solution under the names of ``here``, all there and of the same shapes.

    Raises:
        ArgumentError: The other lacks a name or has a tensor of another shape.
        ArgumentTypeError: ``other`` is neither a model nor a state dict.
    """
    if isinstance(other, nn.Module):
        other = floating_state(unwrapped(other))
    if not isinstance(other, Mapping):
        raise ArgumentTypeError(f"other is a {type(other).__name__}, but a model or its state dict is needed.")
    for name, tensor in here.items():
        found = other.get(name)
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            shape = tuple(getattr(found, "shape", ()))
            has = "is missing" if found is None else f"has shape {shape} and not {tuple(tensor.shape)}"
            raise ArgumentError(
                f"{name!r} {has} in the other solution. Likely cause: it is a network of another kind. Both ends of a "
                "way need the same network."
            )
    return {name: other[name].detach() for name in here}
