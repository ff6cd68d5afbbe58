"""The ``.grad`` fields of a set of parameters, across the several backward passes of one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flatmin.distributed import is_sharded, local
from flatmin.vectors import Total, Vector, dense

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


class Folding:
    """Adds gradients that were set aside to those of the next backward pass, before these are averaged over ranks.

    So a backward pass under DistributedDataParallel averages all evaluations of a step at once, though what ``.grad``
    held before it is cleared, as a closure does.

    Args:
        parameters: Position to parameter.
        aside: The gradients; what has been added is taken out.
    """

    def __init__(self, parameters: Mapping[int, Tensor], aside: Gradients) -> None:
        self._handles = [parameters[i].register_hook(self._hook(i, aside)) for i in aside]

    @staticmethod
    def _hook(position: int, aside: Gradients) -> Callable[[Tensor], Tensor]:
        return lambda gradient: gradient + aside.pop(position) if position in aside else gradient

    def end(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()


class Evaluated:
    """Gradients as a flow sees them (dense, local, as a vector), and the way back into ``.grad``.

    Args:
        gradients: What :func:`take` returned.
        total: Adds partial sums over shards.
        loss_scale: What the loss was multiplied by: a flow sees the gradients of the loss itself.
    """

    def __init__(self, gradients: Gradients, total: Total, loss_scale: Tensor | None = None) -> None:
        found = {i: local(dense(g)) for i, g in gradients.items()}
        self._originals, self._loss_scale = gradients, loss_scale
        if loss_scale is None:
            self.vector: Vector = Vector(found, total)
        else:  # gradients of 16 bits are scaled up for a reason
            wide = {i: g.float() if g.dtype.itemsize < 4 else g for i, g in found.items()}
            self.vector = Vector(wide, total) / loss_scale

    def restored(self, direction: Vector, parameters: Mapping[int, Tensor], factor: Tensor | None = None) -> Gradients:
        """Return ``direction`` as gradients of ``parameters``, scaled as they came: sparse and sharded ones as such.

        Args:
            direction: The direction.
            parameters: Position to parameter.
            factor: What else the direction is multiplied by.
        """
        factors = [f for f in (self._loss_scale, factor) if f is not None]
        if factors:
            direction = direction * math.prod(factors)
        return {i: self._original(i, tensor, parameters[i]) for i, tensor in direction.tensors.items()}

    def _original(self, position: int, tensor: Tensor, parameter: Tensor) -> Tensor:
        original = self._originals.get(position)
        if original is not None and self.vector.tensors.get(position) is tensor:
            return original
        if original is not None and original.is_sparse:
            return tensor.to(parameter.dtype).to_sparse(original.sparse_dim())
        tensor = tensor.to(parameter.dtype.to_real())
        tensor = torch.view_as_complex(tensor.contiguous()) if parameter.is_complex() else tensor
        if not is_sharded(parameter):
            return tensor
        from torch.distributed.tensor import DTensor  # noqa: PLC0415 (slow to import)

        mesh, placements = parameter.device_mesh, parameter.placements  # pyright: ignore[reportAttributeAccessIssue]
        return DTensor.from_local(
            tensor, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
        )
