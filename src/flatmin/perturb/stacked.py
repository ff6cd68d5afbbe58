"""The batched driver: all points of a linear flow in one forward and backward pass, over stacked parameters.

A small network leaves an accelerator idle, and on a CPU its time is that of Python and of tiny kernels. One pass over
P points costs as many calls as a pass over one. The weights themselves are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatmin.distributed import local
from flatmin.errors import ClosureError, ProbeError
from flatmin.perturb.drawing import draw_each
from flatmin.perturb.flow import Draw, Step
from flatmin.perturb.sweeps import reflect_
from flatmin.vectors import Vector, value_for

Loss = Callable[[dict[int, Tensor]], Any]
"""The loss at one point, given its parameters by position."""


class Batch(NamedTuple):
    """What one pass over all points gives.

    Attributes:
        losses: The loss at each point, of shape (points,), without graph.
        direction: Position to the weighted sum of gradients.
        alignments: For each noisy point, its noise and the inner products of its gradient with its displacement.
    """

    losses: Tensor
    direction: dict[int, Tensor]
    alignments: list[tuple[Draw, dict[int, Tensor]]]


def stack(steps: Sequence[Step], parameters: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the points of a plan, (points, ...) for each parameter: bit for bit those that the other drivers visit.

    Args:
        steps: The plan.
        parameters: Position to parameter; whole, standing at the weights themselves.

    Example:
        >>> from flatmin.noise import Rademacher
        >>> from flatmin.streams import Stream
        >>> u = 0.5 * Draw(Rademacher(), Stream(0))
        >>> stack([Step(u, 0.5), Step(-u, 0.5)], {0: torch.ones(3)})[0].sum(0)
        tensor([2., 2., 2.])
    """
    points = {i: p.detach().unsqueeze(0).repeat(len(steps), *[1] * p.dim()) for i, p in parameters.items()}
    weights = {i: local(p).detach() for i, p in parameters.items()}
    for number, (displacement, _) in enumerate(steps):
        if not isinstance(displacement, Draw):
            continue
        rows = {i: local(stacked[number]) for i, stacked in points.items()}
        if number and displacement == -steps[number - 1].displacement:
            for i, row in rows.items():
                row.copy_(local(points[i][number - 1]))
            reflect_(list(rows.values()), list(weights.values()))
            continue
        draw_each(displacement, parameters, _Adder(displacement, rows), in_pieces=rows)
    return points


class _Adder:
    """Adds noise to one row of each stack as it is drawn."""

    def __init__(self, draw: Draw, rows: Mapping[int, Tensor]) -> None:
        self._scale, self._rows = draw.scale, rows

    def __call__(self, position: int, part: slice | None, noise: Tensor) -> None:
        row = self._rows[position] if part is None else self._rows[position].view(-1)[part]
        row.add_(noise, alpha=value_for(self._scale, position))


def evaluate_stacked(
    steps: Sequence[Step], parameters: Mapping[int, Tensor], loss: Loss, *, common_randomness: bool, aligned: bool
) -> Batch:
    """Evaluate ``loss`` and its gradient at all points of a plan together.

    Args:
        steps: The plan.
        parameters: Position to parameter; whole.
        loss: The loss at one point, a 0-dim tensor, in operations that ``torch.func.vmap`` knows.
        common_randomness: Give every point the same dropout masks and other random numbers.
        aligned: Whether to take the inner products.

    Raises:
        ClosureError: The loss is no single number.
        ProbeError: It cannot be batched.
    """
    points = stack(steps, parameters)
    leaves = {i: point.requires_grad_() for i, point in points.items()}
    randomness = "same" if common_randomness else "different"

    def one(point: dict[int, Tensor]) -> Tensor:
        value = loss(point)
        if not isinstance(value, Tensor) or value.numel() != 1:
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
            raise ClosureError(
                f"The loss is {kind}, but it must be one number, as a tensor. The weights were not moved."
            )
        return value.reshape(())

    try:
        with torch.enable_grad(), _batchable_attention(leaves.values()):
            losses = torch.func.vmap(one, randomness=randomness)(leaves)
            gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
    except RuntimeError as error:
        if "vmap" not in str(error) and "functorch" not in str(error):
            raise
        raise ProbeError(
            "The loss cannot be evaluated at several points in one pass: it does what torch.func.vmap does not know, "
            "such as .item(), an `if` on a value, or writing in place to a tensor made before. Write it without, or "
            f"evaluate point by point: opt.step(closure). torch says: {error}"
        ) from error
    taken = {i: g for i, g in zip(leaves, gradients, strict=True) if g is not None}
    weights = [weight for _, weight in steps]
    direction = {i: _weighted(g, weights) for i, g in taken.items()}
    found = []
    for number, (displacement, _) in enumerate(steps if aligned else ()):
        if isinstance(displacement, Draw):
            at = {i: local(points[i].detach()[number]) - local(parameters[i]).detach() for i in taken}
            found.append((displacement, Vector(at).inner_parts(Vector({i: local(taken[i][number]) for i in taken}))))
    return Batch(losses.detach(), direction, found)


def _batchable_attention(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """On a CPU, the attention that is written out: torch 2.13 has no batching rule for its fused kernel there."""
    return sdpa_kernel(SDPBackend.MATH) if any(t.device.type == "cpu" for t in tensors) else nullcontext()


def _weighted(gradients: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted sum over points; where all weigh alike the sum is scaled, as in the other drivers."""
    if len(set(weights)) == 1:
        return gradients.sum(0).mul_(weights[0])
    return torch.tensordot(gradients.new_tensor(weights), gradients, dims=1)
