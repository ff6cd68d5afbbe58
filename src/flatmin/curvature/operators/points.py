"""Outputs of a model at its weights and at displaced ones, and the quadratic forms that their differences give."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from flatmin.curvature.batch import tensors_in
from flatmin.curvature.memory import graph_bytes
from flatmin.distributed import local, local_slice, shard_groups, sum_over_ranks
from flatmin.perturb.displace import Displacer
from flatmin.vectors import Vector, accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from flatmin.curvature.batch import BatchLoss
    from flatmin.curvature.risk import EmpiricalRisk

_COST = 2 / 3  # two forward passes, in gradients


class Parts(NamedTuple):
    """A quadratic form in its two parts, 0-dim, in float64.

    Attributes:
        outer: By the curvature of the loss, v'Gv.
        functional: By the curvature of the network, v'(H - G)v.
    """

    outer: Tensor
    functional: Tensor


@dataclass(frozen=True, eq=False)
class Centre:
    """A batch at the weights themselves: its outputs, and the loss as a function of them.

    Attributes:
        part: The batch.
        outputs: The outputs that the loss is made of, as leaves of a graph.
        slopes: The loss's derivative with respect to each, with its graph.
        places: Where the outputs stand in what the model returns; None if the loss itself is differenced.
        is_loss: Whether what is differenced is a loss, and no output that one is made of.
    """

    part: BatchLoss
    outputs: Sequence[Tensor]
    slopes: Sequence[Tensor]
    places: Sequence[int] | None
    is_loss: bool

    @classmethod
    def of(cls, part: BatchLoss, risk: EmpiricalRisk) -> Centre:
        """Take the loss of a batch, evaluated without a graph, apart."""
        bare = replace(part, output=None)
        leaves, spec = tree_flatten(part.output)
        numbers = {i: x.detach().requires_grad_() for i, x in enumerate(leaves) if _is_real(x)}
        with torch.enable_grad():
            given = {i: number.clone() for i, number in numbers.items()}
            loss = risk.loss(tree_unflatten([given.get(i, x) for i, x in enumerate(leaves)], spec), part)
        met = _slopes(loss, numbers)
        is_written = any(tensor._version for tensor in given.values())  # then part.output is no output any more
        if not met or is_written or _slopes(loss, dict(enumerate(risk.parameters.values()))):
            value = part.loss.detach()
            return cls(bare, [value], [torch.ones_like(value)], None, is_loss=True)
        outputs = [numbers[i] for i in met]
        return cls(bare, outputs, list(met.values()), list(met), is_loss=all(z.dim() == 0 for z in outputs))

    @property
    def size(self) -> int:
        """The number of examples."""
        return self.part.size

    @property
    def nbytes(self) -> int:
        """What it holds, with the outputs at two points beside it."""
        own = sum(tensor.nbytes for tensor in tensors_in(self.part.content))
        return own + 3 * sum(z.nbytes for z in self.outputs) + graph_bytes(self.slopes)

    def evaluate(self, risk: EmpiricalRisk) -> list[Tensor]:
        """Return the same outputs at the weights as they stand."""
        output = risk.output(self.part)
        if self.places is None:
            return [risk.loss(output, self.part).detach()]
        leaves = tree_leaves(output)
        return [leaves[i].detach() for i in self.places]

    def parts(self, ahead: list[Tensor], behind: list[Tensor], step: float) -> Parts:
        """Return the form of the batch's mean loss along the vector that ``step`` times was added and subtracted."""
        along = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        outer = _dot(along, self._curved(along))
        middle = [z.detach() for z in self.outputs]
        bends = [(a - z) + (b - z) for a, z, b in zip(ahead, middle, behind, strict=True)]  # each nearly exact
        return Parts(outer, _dot(bends, self.slopes) / step**2)

    def _curved(self, along: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the loss's Hessian in the outputs times ``along``."""
        curved = [(slope, a) for slope, a in zip(self.slopes, along, strict=True) if slope.requires_grad]
        if not curved:  # the loss is linear in the outputs
            return [torch.zeros_like(z) for z in self.outputs]
        slopes, weights = zip(*curved, strict=True)
        return torch.autograd.grad(slopes, self.outputs, weights, retain_graph=True, materialize_grads=True)


class Points:
    """Moves the weights along vectors and takes the differences; closing it puts them back, bit for bit.

    Args:
        risk: The loss, which is being observed.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = risk
        self._weights = list(risk.parameters.values())
        self._displacer = Displacer(dict(enumerate(self._weights)), risk.model.modules(), unseen=True)
        self._squares = [float(_square(w)) for w in self._weights]
        self._rms = math.sqrt(sum(self._squares) / risk.layout.numel) or 1.0

    def norm(self, touched: Iterable[bool]) -> float:
        """Return the norm of the parameters that are ``touched``, or a tenth of what is usual if larger."""
        chosen = [i for i, is_touched in enumerate(touched) if is_touched]
        own, count = sum(self._squares[i] for i in chosen), sum(self._weights[i].numel() for i in chosen)
        return max(math.sqrt(own), 0.1 * self._rms * math.sqrt(count))  # biases may be zero, or nearly so

    def parts(self, chunk: Sequence[Centre], vector: Mapping[str, Tensor], step: float) -> Parts:
        """Return the form along ``vector``, summed over the examples of ``chunk``."""
        self._displacer.displace(self._scaled(vector, step))
        ahead = [centre.evaluate(self._risk) for centre in chunk]
        self._displacer.reflect()
        outer, functional = [], []
        for centre, outputs in zip(chunk, ahead, strict=True):
            parts = centre.parts(outputs, centre.evaluate(self._risk), step)
            outer.append(centre.size * parts.outer)
            functional.append(centre.size * parts.functional)
            self._risk.spend(_COST, centre.size)
        return Parts(torch.stack(outer).sum(), torch.stack(functional).sum())

    def _scaled(self, vector: Mapping[str, Tensor], step: float) -> Vector:
        parts = enumerate(zip(self._weights, vector.values(), strict=True))
        return Vector({i: (step * local_slice(part, w)).to(local(w)) for i, (w, part) in parts if part.any()})

    def rest(self) -> None:
        """Put the weights back, to be moved again."""
        self._displacer.restore()

    def close(self) -> None:
        """Put the weights back."""
        self._displacer.release()


@torch.no_grad()
def _square(weight: Tensor) -> Tensor:
    shard = local(weight)
    square = Vector({0: shard}).dot(Vector({0: shard})).clone()
    return sum_over_ranks(lambda: square, shard_groups(weight))


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _slopes(loss: Tensor, tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the derivatives of ``loss``, with their graph, by those of ``tensors`` that it depends on."""
    inputs = {i: tensor for i, tensor in tensors.items() if tensor.requires_grad}
    if not loss.requires_grad or not inputs:
        return {}
    found = torch.autograd.grad(loss, list(inputs.values()), create_graph=True, allow_unused=True)
    return {i: slope for i, slope in zip(inputs, found, strict=True) if slope is not None}


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product, summed in float64."""
    products = (torch.sum(a * b.detach(), dtype=accumulation_dtype(a.device)) for a, b in zip(left, right, strict=True))
    return torch.stack(list(products)).sum()
