"""Where a loss is cut in two: the outputs of the model through which the loss depends on the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside mappings, sequences and dataclass-like model outputs, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from tensors_in(item)


def cut(output: Any, loss: Tensor) -> list[Tensor]:
    """Return the tensors of ``output`` that the backward pass of ``loss`` meets first.

    A model may return hidden states beside its logits, which the loss reaches through the logits, or the loss itself,
    which is the end and not an output; neither counts. Through the tensors returned, and through nothing else of
    ``output``, the loss depends on the weights; none of them depends on another.

    Args:
        output: What the model returned, with its graph.
        loss: The loss made of it, with its graph.
    """
    end = get_gradient_edge(loss)
    candidates = {}
    for tensor in tensors_in(output):
        if tensor.requires_grad and tensor is not loss:
            edge = get_gradient_edge(tensor)
            if (edge.node, edge.output_nr) != (end.node, end.output_nr):
                candidates.setdefault((edge.node, edge.output_nr), tensor)
    met, seen, ahead = {}, set(), [(end.node, end.output_nr)]
    while ahead:
        place = ahead.pop()
        if place in seen:
            continue
        seen.add(place)
        if place in candidates:
            met[place] = candidates[place]
        else:
            ahead += [(node, number) for node, number in place[0].next_functions if node is not None]
    return [tensor for place, tensor in candidates.items() if place in met]
