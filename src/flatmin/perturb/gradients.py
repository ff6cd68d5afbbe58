"""The ``.grad`` fields of a set of parameters, across the several backward passes of one step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flatmin.distributed import is_sharded, local
from flatmin.vectors import Total, Vector

Gradients = dict[int, Tensor]


def current(parameters: Mapping[int, Tensor]) -> Gradients:
    """Return the gradients that are there, by position, sharing their memory."""
    return {i: p.grad for i, p in parameters.items() if p.grad is not None}


def take(parameters: Mapping[int, Tensor]) -> Gradients:
    """Move the gradients out of ``.grad``, so that the next backward pass starts new ones."""
    taken = {i: _own(gradient) for i, gradient in current(parameters).items()}
    for i in taken:
        parameters[i].grad = None
    return taken


def drop(parameters: Mapping[int, Tensor]) -> None:
    """Let go of the gradients."""
    for parameter in parameters.values():
        parameter.grad = None


def _own(gradient: Tensor) -> Tensor:
    """Return ``gradient``, copied if it is a piece of a larger memory that is written again (DDP's buckets)."""
    if is_sharded(gradient) or gradient.layout != torch.strided:
        return gradient
    whole = gradient.untyped_storage().nbytes() == gradient.numel() * gradient.element_size()
    return gradient if whole else gradient.clone()


def put_back(parameters: Mapping[int, Tensor], gradients: Gradients) -> None:
    """Add ``gradients`` to what ``.grad`` holds."""
    present = current(parameters)
    both = [i for i in gradients if i in present]
    for i in gradients.keys() - present.keys():
        parameters[i].grad = gradients[i]
    if any(g.layout != torch.strided for i in both for g in (present[i], gradients[i])):
        for i in both:
            parameters[i].grad = present[i] + gradients[i]
    elif both:
        torch._foreach_add_([local(present[i]) for i in both], [local(gradients[i]) for i in both])


def rescale(parameters: Mapping[int, Tensor], factor: float) -> None:
    """Multiply what ``.grad`` holds by ``factor``, in place."""
    gradients = [local(g) for g in current(parameters).values()]
    strided = [g for g in gradients if g.layout == torch.strided]
    if factor != 1.0 and strided:
        torch._foreach_mul_(strided, factor)
    if factor != 1.0:
        for sparse in (g for g in gradients if g.layout != torch.strided):
            sparse.mul_(factor)


class Evaluated:
    """Gradients as a flow sees them (dense, local, as a vector), and the way back into ``.grad``.

    Args:
        gradients: What :func:`take` returned.
        total: Adds partial sums over shards.
    """

    def __init__(self, gradients: Gradients, total: Total) -> None:
        dense = {i: local(g) if g.layout == torch.strided else g.to_dense() for i, g in gradients.items()}
        self.vector = Vector(dense, total)
        self._originals = gradients

    def restored(self, direction: Vector, parameters: Mapping[int, Tensor]) -> Gradients:
        """Return ``direction`` as gradients of ``parameters``: sparse and sharded ones in the layout they came in."""
        return {i: self._original(i, tensor, parameters[i]) for i, tensor in direction.tensors.items()}

    def _original(self, position: int, tensor: Tensor, parameter: Tensor) -> Tensor:
        if self.vector.tensors.get(position) is tensor:
            return self._originals[position]
        tensor = tensor.to(parameter.dtype)
        if not is_sharded(parameter):
            return tensor
        from torch.distributed.tensor import DTensor  # noqa: PLC0415 (slow to import)

        mesh, placements = parameter.device_mesh, parameter.placements  # pyright: ignore[reportAttributeAccessIssue]
        return DTensor.from_local(
            tensor, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
