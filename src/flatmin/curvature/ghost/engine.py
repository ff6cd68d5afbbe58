"""One batch: cotangents of the outputs in, squared gradient norms of every example and parameter out."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from flatmin.curvature.ghost.examples import Axis, example_axis, fits, masked
from flatmin.curvature.ghost.forms import Form, Outer, chunks, squares
from flatmin.curvature.ghost.graph import shape_of
from flatmin.curvature.ghost.layers import form_of
from flatmin.curvature.ghost.place import Place
from flatmin.curvature.ghost.uses import Graph, Use, moves

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn
    from torch.autograd.graph import Node

TRIED = 4  # examples, at most
BACKWARD = 1 / 3  # a backward pass that stops at the layers' outputs, in gradients


class Structure:
    """Where the parameters of a model meet data, found on a batch and valid for all of them.

    One example's outputs are pulled back at a time. Two examples tell what there is to know, unless gradients vanish
    somewhere (units of a ReLU that are all silent), in which case more are tried.

    Args:
        outputs: The outputs for a batch, examples first, with their graph.
        parameters: The parameters, by name.
        graph: That of the outputs.
        cotangents: Of the form of the outputs, random.

    Attributes:
        axes: Axis of the examples at each candidate, in the order of ``graph.candidates``; None if there is none.
        proven: Whether any gradient got there, without which the axis is a guess.
        references: For the first examples, the squared norm of each parameter's gradient, by an ordinary backward pass.
    """

    def __init__(
        self,
        outputs: Sequence[Tensor],
        parameters: Mapping[str, nn.Parameter],
        graph: Graph,
        cotangents: Sequence[Tensor],
    ) -> None:
        size, nodes = len(outputs[0]), graph.candidates
        self._kinds = graph.kinds
        ends: list[Any] = [*(GradientEdge(node, 0) for node in nodes), *parameters.values()]
        found: list[Sequence[Tensor]] = []
        self.references: list[dict[str, float]] = []
        self.proven: list[bool] = [False] * len(nodes)
        for example in range(min(TRIED, size)):
            cotangent = masked(cotangents, example)
            gradients = torch.autograd.grad(outputs, ends, cotangent, retain_graph=True, materialize_grads=True)
            norms = torch.stack(torch._foreach_norm([g.detach() for g in gradients])).double().square_().tolist()
            found.append(gradients[: len(nodes)])
            self.references.append(dict(zip(parameters, norms[len(nodes) :], strict=True)))
            self.proven = [proven or norm > 0 for proven, norm in zip(self.proven, norms, strict=False)]
            if example > 0 and all(self.proven):
                break
        # What only moves the numbers of a parameter cannot have an axis of examples, whatever zeros make it look like.
        self.axes: list[Axis | None] = [
            None if moves(node) else example_axis(gradients, size)
            for node, gradients in zip(nodes, zip(*found, strict=True), strict=True)
        ]

    def describes(self, graph: Graph) -> bool:
        """Tell whether ``graph`` has the candidates that this was found on: batches may take different paths."""
        return graph.kinds == self._kinds


class Ghost:
    """The squared gradient norms of single examples for one batch, for any cotangents of its outputs.

    Args:
        outputs: The outputs for the batch, examples first, with their graph.
        parameters: The parameters, by name.
        graph: That of the outputs, which ``structure`` describes.
        structure: Where the parameters meet data.
        budget: Bytes for what is kept between cotangents.
        without: Names of parameters to leave out.

    Attributes:
        covered: The parameters whose norms can be had, in order.
        unproven: Those of them whose norms are right only if they are zero.
        cost: What one cotangent costs, in gradients of the batch.
    """

    def __init__(
        self,
        outputs: Sequence[Tensor],
        parameters: Mapping[str, nn.Parameter],
        graph: Graph,
        structure: Structure,
        budget: int,
        without: Collection[str] = (),
    ) -> None:
        self._outputs, self._size, self._budget = list(outputs), len(outputs[0]), budget
        candidates = graph.candidates
        self._axes: dict[Node, Axis | None] = dict(zip(candidates, structure.axes, strict=True))
        unproven = {node for node, proven in zip(candidates, structure.proven, strict=True) if not proven}
        self._keep = graph  # node identities last as long as this
        found = graph.uses(lambda node: self._axes.get(node) is not None)
        self._forms: dict[str, list[tuple[int, Form]]] = {}
        self._edges: dict[Node, int] = {}
        self.unproven: list[str] = []
        for name in parameters:
            if name not in without and (uses := found.get(name)) and (forms := self._read(uses)):
                self._forms[name] = forms
                if any(use.node in unproven for use in uses):
                    self.unproven.append(name)
        self.covered: tuple[str, ...] = tuple(self._forms)
        every = [form for forms in self._forms.values() for _, form in forms]
        ordinary = sum(form.weight_work for form in every) or 1.0
        self.cost: float = BACKWARD * (1 + sum(form.work for form in every) / ordinary)

    def _read(self, uses: list[Use]) -> list[tuple[int, Form]] | None:
        """Return the place of the cotangent and the form for every use of one parameter, None unless all have one."""
        if len(uses) > 1 and not all(use.whole for use in uses) and len({use.path for use in uses}) > 1:
            return None
        forms: list[tuple[int, Form]] = []
        for use in uses:
            axis = self._axes[use.node]
            if axis is None or not fits(shape_of(use.node) or (), axis, self._size):
                return None
            form = form_of(Place(use, axis, self._size, self._budget if len(uses) == 1 else 0))
            if form is None:
                return None
            if isinstance(form, Outer) and form.by_gram and len(uses) == 1:
                self._budget -= form.memory
            forms.append((self._edges.setdefault(use.node, len(self._edges)), form))
        return forms

    def bytes_each(self) -> int:
        """Return the bytes that the layers' gradients for one cotangent take."""
        total = 0
        for node in self._edges:
            meta = node._input_metadata[0]  # type: ignore[attr-defined]
            total += torch.Size(meta.shape).numel() * meta.dtype.itemsize
        return total

    def norms(self, cotangents: Sequence[list[Tensor]]) -> Tensor:
        """Return the squared norms, float64, shape (cotangents, covered parameters, examples).

        Args:
            cotangents: Each one tensor for each output.
        """
        if not self.covered:
            return self.zeros().expand(len(cotangents), -1, -1)
        edges = [GradientEdge(node, 0) for node in self._edges]
        pulled = [
            torch.autograd.grad(self._outputs, edges, c, retain_graph=True, materialize_grads=True) for c in cotangents
        ]
        with torch.no_grad():
            return torch.stack([self._norms(self._forms[name], pulled) for name in self.covered], dim=1)

    def zeros(self) -> Tensor:
        """Return a zero for every covered parameter and example."""
        return torch.zeros(len(self.covered), self._size, dtype=torch.float64, device=self._outputs[0].device)

    def _norms(self, forms: list[tuple[int, Form]], pulled: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the norms for one parameter, shape (cotangents, examples)."""
        if len(forms) == 1:
            place, form = forms[0]
            return form.norms([gradients[place] for gradients in pulled])
        outer = [(place, form) for place, form in forms if isinstance(form, Outer)]
        if len(outer) == len(forms) and _by_inner(outer):
            return torch.stack([_inner_norms(outer, gradients) for gradients in pulled])
        return torch.stack([self._summed(forms, gradients) for gradients in pulled])

    def _summed(self, forms: list[tuple[int, Form]], pulled: Sequence[Tensor]) -> Tensor:
        """Return the norms of the sum of several uses' gradients, formed a few examples at a time."""
        parts = []
        device = self._outputs[0].device
        whole = max(form.left.width * form.right.width if isinstance(form, Outer) else 1024 for _, form in forms)
        for examples in chunks(self._size, 8 * whole * len(forms), device):
            total = sum(
                (form.gradients(pulled[place], examples) for place, form in forms), torch.zeros((), device=device)
            )
            parts.append(squares(total))
        return torch.cat(parts)


def _by_inner(outer: list[tuple[int, Outer]]) -> bool:
    """Tell whether inner products between positions cost less than the gradient itself."""
    positions = sum(form.left.positions for _, form in outer)
    first = outer[0][1]
    inner = positions**2 * (first.left.width + first.right.width) * first.left.groups
    return inner < sum(form.weight_work for _, form in outer) or any(f.onehot is not None for _, f in outer)


def _inner_norms(outer: list[tuple[int, Outer]], pulled: Sequence[Tensor]) -> Tensor:
    first = outer[0][1]
    positions = max(form.left.positions for _, form in outer)
    each = 4 * positions * (positions + first.left.width + first.right.width) * first.left.groups * 8
    parts = []
    for examples in chunks(first.size, each, first.device):
        total = sum(
            (form.inner(form, (pulled[place], pulled[place]), examples) for place, form in outer),
            torch.zeros((), device=first.device),
        )
        for (a, one), (b, two) in combinations(outer, 2):
            total = total + 2 * one.inner(two, (pulled[a], pulled[b]), examples)
        parts.append(total)
    return torch.cat(parts)
