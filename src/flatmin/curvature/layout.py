"""How the trainable parameters of a model lie in one flat vector."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from flatmin.distributed import is_sharded
from flatmin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


_EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)


def trainable_parameters(model: nn.Module, *, sharded: bool = False) -> dict[str, nn.Parameter]:
    """Return the parameters of ``model`` that require gradients, by name, in the order of ``named_parameters()``.

    A tensor that several modules share appears once, under its first name.

    Args:
        model: The model.
        sharded: Whether parameters may be split over ranks.

    Raises:
        ArgumentError: There is none.
        ArgumentTypeError: One is complex, or split over ranks where it may not be.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ArgumentError(
            f"{type(model).__name__} has no parameter that requires gradients, so there is nothing to measure. Was it "
            "frozen? parameter.requires_grad_(True) thaws."
        )
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise ArgumentTypeError(
                f"parameter {name!r} is complex, which curvature is not defined for here. Freeze it with "
                "requires_grad_(False), or measure a model of real tensors."
            )
        if is_sharded(parameter) and not sharded:
            raise ArgumentTypeError(
                f"parameter {name!r} is split over ranks, of which derivatives are not taken here. Forward passes do: "
                "trace(ForwardOnlyHessian(...)), perturbation_trace(...). Or load the full state dict into a whole "
                "model on each rank and split the data: DataOverRanks(Hessian(...))."
            )
    return parameters


def check_embeddings(model: nn.Module) -> None:
    """Raise ArgumentError if a forward pass of ``model`` rewrites weights: embeddings with ``max_norm`` do."""
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None and isinstance(module, _EMBEDDINGS):
            raise ArgumentError(
                f"embedding {name!r} has max_norm={module.max_norm}: every forward pass shortens its weights, so that "
                "no place in weight space can be measured. Shorten them once, and set module.max_norm = None meanwhile."
            )


def still_rows(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Return the rows of embeddings that stand still: those for padding, which have no gradient, where nothing is tied.

    Example:
        >>> model = torch.nn.Embedding(5, 2, padding_idx=1)
        >>> still_rows(model, trainable_parameters(model))
        {'weight': 1}
    """
    holders = [(id(p), module) for module in model.modules() for p in module._parameters.values()]
    uses = Counter(key for key, _ in holders)
    rows = {
        key: module.padding_idx
        for key, module in holders
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None and uses[key] == 1
    }
    return {name: rows[id(p)] for name, p in parameters.items() if id(p) in rows}


@dataclass(frozen=True)
class Layout:
    """The order of coordinates in a flat vector: parameters one after the other, each in row-major order.

    Attributes:
        shapes: Name to shape, in order.

    Example:
        >>> layout = Layout.of(dict(torch.nn.Linear(2, 1).named_parameters()))
        >>> layout.split(torch.arange(3.0))
        {'weight': tensor([[0., 1.]]), 'bias': tensor([2.])}
        >>> layout.flatten(layout.split(torch.arange(3.0)))
        tensor([0., 1., 2.])
    """

    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Return the layout of ``tensors`` in their order."""
        return cls({name: tensor.shape for name, tensor in tensors.items()})

    @property
    def numel(self) -> int:
        """The dimension d of the flat vector."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The number of coordinates of each parameter, in order."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where the coordinates of each parameter lie in the flat vector."""
        ends = list(itertools.accumulate(self.sizes, initial=0))
        return {name: slice(*ends[i : i + 2]) for i, name in enumerate(self.shapes)}

    def matching(self, *patterns: str) -> list[str]:
        """Return the names that fit one of ``patterns``, which are names or in the manner of a shell, in order.

        Raises:
            ArgumentError: A pattern fits no parameter.
        """
        for pattern in patterns:
            if pattern not in self.shapes and not fnmatch.filter(self.shapes, pattern):
                nearest = difflib.get_close_matches(pattern, self.shapes, n=1)
                meant = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ArgumentError(
                    f"{pattern!r} fits no trainable parameter. There are {', '.join(map(repr, self.shapes))}.{meant}"
                )
        return [n for n in self.shapes if n in patterns or any(fnmatch.fnmatchcase(n, p) for p in patterns)]

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the named tensors that ``vector`` (d,) consists of, as views of it.

        Raises:
            ArgumentError: ``vector`` has another shape.
        """
        if vector.shape != (self.numel,):
            raise ArgumentError(
                f"the vector has shape {tuple(vector.shape)}, but the parameters have {self.numel} coordinates in all, "
                f"so ({self.numel},) is needed. Take one column of a block at a time."
            )
        parts = zip(self.shapes.items(), vector.split(self.sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return named tensors as one vector (d,), a copy; names that are missing count as zero.

        Raises:
            ArgumentError: A name or a shape is not that of a parameter, or no tensor is given.
        """
        self.check(tensors)
        first = next(iter(tensors.values()))
        parts = (tensors[n].reshape(-1) if n in tensors else first.new_zeros(s) for n, s in self._named_sizes())
        return torch.cat(list(parts))

    def _named_sizes(self) -> list[tuple[str, int]]:
        return list(zip(self.shapes, self.sizes, strict=True))

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ArgumentError unless every tensor has the name and the shape of a parameter, and there is one."""
        if not tensors:
            raise ArgumentError("no tensor was given, so that neither type nor device is known. Name at least one.")
        for name, tensor in tensors.items():
            if name not in self.shapes:
                raise ArgumentError(
                    f"{name!r} is the name of no trainable parameter. There are {', '.join(map(repr, self.shapes))}."
                )
            if tensor.shape != self.shapes[name]:
                raise ArgumentError(
                    f"{name!r} has shape {tuple(tensor.shape)}, but the parameter has {tuple(self.shapes[name])}."
                )
