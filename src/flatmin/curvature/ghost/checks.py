"""What the graph tells is tried on a few examples before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatmin.curvature.ghost.engine import Ghost, Structure
from flatmin.curvature.ghost.examples import masked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from flatmin.streams import Stream

_TRIED = 2  # parameters whose second derivative is looked at


def few(batch: Any, size: int, count: int) -> Any:
    """Return the first ``count`` examples of ``batch``: every tensor with ``size`` rows is cut.

    Example:
        >>> few((torch.arange(5), {"mask": None}), size=5, count=2)
        (tensor([0, 1]), {'mask': None})
    """
    if isinstance(batch, Tensor):
        return batch[:count] if batch.dim() > 0 and len(batch) == size else batch
    if isinstance(batch, Mapping):
        return {key: few(value, size, count) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(few(value, size, count) for value in batch)
    return batch


def same(few_outputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Tell whether outputs for a few examples are those that the same examples have in the batch."""
    if len(few_outputs) != len(outputs):
        return False
    for part, whole in zip(few_outputs, outputs, strict=True):
        if part.shape[1:] != whole.shape[1:]:
            return False
        difference = (part - whole[: len(part)]).detach().abs().max()
        if difference > torch.finfo(part.dtype).eps ** 0.5 * whole.detach().abs().max():
            return False
    return True


def random_like(outputs: Sequence[Tensor], stream: Stream) -> list[Tensor]:
    """Return Gaussian cotangents of the form of ``outputs``."""
    return [
        torch.randn(z.shape, generator=stream.generator(i, z.device), device=z.device, dtype=z.dtype)
        for i, z in enumerate(outputs)
    ]


def disagreeing(ghost: Ghost, structure: Structure, cotangents: Sequence[Tensor]) -> list[str]:
    """Return the parameters for which norms differ from those of ordinary gradients, or mix examples."""
    found = ghost.norms([masked(cotangents, example) for example in range(len(structure.references))])
    types = {z.dtype for z in cotangents} | {torch.float32}
    tolerance = max(torch.finfo(dtype).eps for dtype in types) ** 0.5
    wrong = []
    for position, name in enumerate(ghost.covered):
        for example, reference in enumerate(structure.references):
            norms = found[example, position]
            expected = torch.zeros_like(norms)
            expected[example] = reference[name]
            tiny = 1e-12 * max(reference.values())
            if (norms - expected).abs().max() > 4 * tolerance * reference[name] + tiny:
                wrong.append(name)
                break
    return wrong


def bent(
    outputs: Sequence[Tensor], parameters: Mapping[str, nn.Parameter], names: Sequence[str], stream: Stream
) -> bool:
    """Tell whether the outputs have a second derivative in one of ``names`` after all.

    A random combination of the outputs is differentiated twice in a random direction of one parameter: its own
    block of the result must vanish beside the whole. Parameters at the beginning see most of the network, so the
    first and another one are tried.
    """
    if not names:
        return False
    chosen = list(dict.fromkeys([names[0], names[len(names) // 2]]))[:_TRIED]
    slopes = random_like(outputs, stream.child(1))
    values = list(parameters.values())
    gradients = torch.autograd.grad(outputs, values, slopes, create_graph=True, materialize_grads=True)
    for i, name in enumerate(chosen):
        position = list(parameters).index(name)
        direction = torch.randn(
            parameters[name].shape,
            generator=stream.child(2).generator(i, parameters[name].device),
            device=parameters[name].device,
            dtype=parameters[name].dtype,
        )
        if not gradients[position].requires_grad:
            continue
        images = torch.autograd.grad(gradients[position], values, direction, retain_graph=True, materialize_grads=True)
        own = images[position].norm()
        if (
            own > 1e-3 * torch.stack([image.norm() for image in images]).norm()
            and own > 1e-6 * gradients[position].norm()
        ):
            return True
    return False
