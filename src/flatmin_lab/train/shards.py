"""A network in shards (FSDP2): what is gathered at a time, and how its state becomes whole and is parted again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from flatmin.distributed import is_sharded


def parted(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give whole tensors the shards that those of ``like`` have; the others stay as they are.

    Args:
        state: Whole tensors by name, equal on all ranks.
        like: Tensors by name.

    Returns:
        The state, for this rank.
    """
    return {name: part(tensor, like[name]) if name in like else tensor for name, tensor in state.items()}


def part(tensor: Any, like: Tensor) -> Any:
    """Give a whole tensor the shards of ``like`` if it has its shape; anything else stays as it is."""
    if not isinstance(tensor, Tensor) or not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    whole = tensor.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements)  # pyright: ignore[reportAttributeAccessIssue]


def gathered(value: Any) -> Any:
    """A whole tensor of a sharded one; anything else stays as it is."""
    return value.full_tensor() if isinstance(value, Tensor) and is_sharded(value) else value  # pyright: ignore[reportAttributeAccessIssue]


def units(model: nn.Module) -> list[nn.Module]:
    """What is gathered at a time: the elements of the topmost sequences of layers, each with weights of its own.

    Everything else belongs to the root, which stays gathered through a forward pass: the network may use it directly.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))

    def is_apart(module: nn.Module) -> bool:
        own = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
        return bool(own) and all(uses[key] == count for key, count in own.items())

    def within(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(module, (nn.Sequential, nn.ModuleList)):
                yield from [child] if is_apart(child) else []
            else:
                yield from within(child)

    return list(within(model))
