"""Where a loss is cut in two: the outputs of the model through which the loss depends on the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.autograd.graph import get_gradient_edge

from flatmin.curvature.batch import check_depends, tensors_in
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flatmin.curvature.batch import BatchLoss


def cut(output: Any, loss: Tensor) -> list[Tensor]:
    """Return the tensors of ``output`` that the backward pass of ``loss`` meets first.

    A model may return hidden states beside its logits, which the loss reaches through the logits, or the loss itself,
    which is the end and not an output; neither counts. Nor does a single number that is made of another output: a loss
    that ``loss`` is made of. Through the tensors returned, and through nothing else of ``output``, the loss depends on
    the weights; none of them depends on another.

    Args:
        output: What the model returned, with its graph.
        loss: The loss made of it, with its graph.
    """
    end = _place(loss)
    candidates: dict[_Place, Tensor] = {}
    for tensor in tensors_in(output):
        if tensor.requires_grad and tensor is not loss and (place := _place(tensor)) != end:
            candidates.setdefault(place, tensor)
    met = _met(end, candidates)
    inner = {place: tensor for place, tensor in candidates.items() if tensor.dim() > 0}
    for place in [place for place in met if candidates[place].dim() == 0]:
        if behind := _met(place, inner):
            met = (met - {place}) | behind
    return [tensor for place, tensor in candidates.items() if place in met]


def outputs_of(part: BatchLoss) -> list[Tensor]:
    """Return the outputs that the loss of a batch is made of.

    Raises:
        ArgumentError: There is none.
        ArgumentTypeError: The loss depends on no parameter.
    """
    check_depends(part.loss)
    outputs = cut(part.output, part.loss)
    if not outputs:
        raise ArgumentError(
            "the loss is made of no output of the model, so that the outputs' part of the curvature (Gauss-Newton, "
            "Fisher) is not defined. Likely cause: the model returns its loss alone. Let it return the logits too, or "
            "measure the Hessian."
        )
    return outputs


_Place = tuple[Any, int]
"""A node of the graph, and which of its outputs."""


def _place(tensor: Tensor) -> _Place:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _met(end: _Place, candidates: Mapping[_Place, Tensor]) -> set[_Place]:
    """Return the places of ``candidates`` that lie behind ``end`` with none of them in between."""
    met, seen, ahead = set[_Place](), set[_Place](), [end]
    while ahead:
        place = ahead.pop()
        if place in seen:
            continue
        seen.add(place)
        if place in candidates:
            met.add(place)
        else:
            ahead += [(node, number) for node, number in place[0].next_functions if node is not None]
    return met
