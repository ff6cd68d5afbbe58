"""Outer-product curvature: the generalised Gauss-Newton matrix and the empirical Fisher matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.graph import get_gradient_edge

from flatmin.curvature.cut import outputs_of
from flatmin.curvature.ghost.linearity import bypassing
from flatmin.curvature.operators.duals import tangents, without_tangents
from flatmin.curvature.operators.risk_operator import RiskOperator
from flatmin.curvature.operators.routes import NoSecondDerivativeError
from flatmin.errors import ArgumentError, DataError
from flatmin.vectors import dense

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from flatmin.curvature.batch import Batch, BatchLoss
    from flatmin.curvature.graph import Root
    from flatmin.curvature.operators.session import Product
    from flatmin.curvature.operators.steps import Line


Curve = Callable[[int, "Sequence[Tensor]", "Sequence[Tensor]", "Sequence[Tensor]"], "Sequence[Tensor]"]
"""M J v of the number of examples, the outputs, the slopes of the loss by them (with their graph), and J v."""


class _OuterProduct:
    """JᵀMJ for one batch, J the Jacobian of the outputs.

    J v comes from the graph of u ↦ Jᵀu, which is linear in u: its derivative along v is J v, by a backward pass that
    never meets the weights. Both graphs are built once.
    """

    cost = 4 / 3  # a backward pass through the graph of a backward pass, and a backward pass

    def __init__(self, part: BatchLoss, parameters: Mapping[str, Tensor], curve: Curve) -> None:
        self._parameters = list(parameters.values())
        self._size, self._curve = part.size, curve
        self._outputs, self._slopes = _outputs_and_slopes(part)
        self._dual = [torch.zeros_like(z, requires_grad=True) for z in self._outputs]
        pulled = torch.autograd.grad(self._outputs, self._parameters, self._dual, create_graph=True, allow_unused=True)
        for g in pulled:
            if g is not None and g.layout != torch.strided:
                raise NoSecondDerivativeError("a sparse gradient (embedding.sparse = False makes it dense)")
        self._owners = [i for i, g in enumerate(pulled) if g is not None]
        self._pulled = [get_gradient_edge(g) for g in pulled if g is not None]  # the numbers themselves are zero
        self.roots: Sequence[Root] = [*self._pulled, *self._outputs, *self._slopes, *self._dual]

    def __call__(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        if not self._pulled:
            return [None] * len(self._parameters)
        along = torch.autograd.grad(
            self._pulled, self._dual, [vector[i] for i in self._owners], retain_graph=True, materialize_grads=True
        )
        curved = self._curve(self._size, self._outputs, self._slopes, along)
        return torch.autograd.grad(self._outputs, self._parameters, curved, retain_graph=keep, allow_unused=True)


def _outputs_and_slopes(part: BatchLoss) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Return the outputs that a batch's loss is made of, and its derivatives by them, with their graph."""
    outputs = outputs_of(part)
    return outputs, torch.autograd.grad(part.loss, outputs, create_graph=True)


class OuterOperator(RiskOperator):
    """JᵀMJ, J the Jacobian of the outputs: see :class:`GGN` and :class:`EmpiricalFisher`.

    By dual numbers, J v is the tangent of the outputs; by differences, it is (z(W + hv) - z(W - hv)) / 2h, which needs
    forward passes alone.
    """

    _FORWARD = 5 / 3  # a forward pass of dual numbers, and a backward pass
    _DIFFERENCE = 5 / 3  # three forward passes and a backward pass
    _FORWARD_ROUTE, _REVERSE_ROUTE = "dual numbers forward, then reverse", "two vector-Jacobian products"

    @abstractmethod
    def _curve(
        self, size: int, outputs: Sequence[Tensor], slopes: Sequence[Tensor], along: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Return M times J v, which is ``along``."""

    def _prepare(self, part: BatchLoss) -> Product:
        return _OuterProduct(part, self.risk.parameters, self._curve)

    def _push(self, part: BatchLoss, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        outputs = outputs_of(part)
        along = [torch.zeros_like(z) if t is None else t for z, t in zip(outputs, tangents(outputs), strict=True)]
        with without_tangents():
            return self._pull(part, along, parameters)

    def _difference(self, item: Batch, line: Line, s: float) -> Sequence[Tensor | None]:
        sides = []
        for place in (s, -s):
            part = line.at(place, item)
            sides.append([z.detach() for z in outputs_of(part)])
            del part  # or its graph would stay while the next one is built
        along = [(ahead - behind).div_(2 * s) for ahead, behind in zip(*sides, strict=True)]
        return self._pull(line.at(0.0, item), along, list(self.risk.parameters.values()))

    def _pull(self, part: BatchLoss, along: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return JᵀM ``along``."""
        outputs, slopes = _outputs_and_slopes(part)
        curved = self._curve(part.size, outputs, slopes, along)
        pulled = torch.autograd.grad(outputs, parameters, curved, allow_unused=True)
        return [None if part is None else dense(part) for part in pulled]


class GGN(OuterOperator):
    r"""The generalised Gauss-Newton matrix of the mean loss (Schraudolph 2002).

    .. math:: G = \frac1N \sum_n J_n^\top \big(\nabla_z^2 \ell_n\big) J_n, \qquad J_n = \frac{\partial z_n}{\partial W}

    with z the outputs of the model that the loss is made of. For cross-entropy it is the Fisher matrix. It is positive
    semidefinite where the loss is convex in the outputs, and the Hessian of the network made linear in its weights. A
    penalty on the weights, which is no function of the outputs, has no part in it.

    See :class:`RiskOperator` for the arguments, the attributes and what a product leaves untouched. In units of a
    gradient, about 1 for the graph and 4/3 a vector.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> G = GGN(model, torch.nn.functional.mse_loss, [(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))])
        >>> G @ torch.eye(2)                                       # 2 x xᵀ: the network is linear
        tensor([[2., 4.],
                [4., 8.]])
    """

    def _curve(
        self,
        size: int,  # noqa: ARG002 (the slopes tell)
        outputs: Sequence[Tensor],
        slopes: Sequence[Tensor],
        along: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        curved = [(slope, a) for slope, a in zip(slopes, along, strict=True) if slope.requires_grad]
        if not curved:  # the loss is linear in the outputs
            return [torch.zeros_like(z) for z in outputs]
        bent, weights = zip(*curved, strict=True)
        return torch.autograd.grad(bent, outputs, weights, retain_graph=True, materialize_grads=True)


class EmpiricalFisher(OuterOperator):
    r"""The mean outer product of the gradients of single examples.

    .. math:: F = \frac1N \sum_n \nabla \ell_n \nabla \ell_n^\top

    often called the empirical Fisher matrix. (It is not the Fisher matrix, which averages over the labels that the
    model would draw: that is :class:`GGN` for cross-entropy.) Gradients of single examples are never formed: a product
    takes J v and weighs each example by the slope of its loss. The examples must be the first dimension of the outputs,
    and independent of each other, and ``loss_fn`` their mean.

    See :class:`RiskOperator` for the arguments, the attributes and what a product leaves untouched.

    Raises:
        ArgumentError: The loss depends on weights besides by the outputs (on multiplying).
        DataError: The outputs do not have one row an example (on multiplying).

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> batches = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2))]
        >>> F = EmpiricalFisher(model, lambda z, y: z.mean(), batches)
        >>> F @ torch.eye(2)
        tensor([[ 5.,  7.],
                [ 7., 10.]])
    """

    def _prepare(self, part: BatchLoss) -> Product:
        _refuse_penalties(part, self.risk.parameters)
        return super()._prepare(part)

    def _pull(self, part: BatchLoss, along: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        _refuse_penalties(part, dict(zip(self.risk.parameters, parameters, strict=True)))
        return super()._pull(part, along, parameters)

    def _curve(
        self, size: int, outputs: Sequence[Tensor], slopes: Sequence[Tensor], along: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        for z in outputs:
            if z.dim() == 0 or z.shape[0] != size:
                raise DataError(
                    f"the loss is made of outputs of shape {tuple(z.shape)}, but the batch has {size} examples: "
                    "gradients of single examples cannot be told apart. The first dimension of the outputs "
                    "must be that of the targets."
                )
        rows = [slope.detach().reshape(size, -1) for slope in slopes]
        rises = sum((s * a.reshape_as(s)).sum(1, keepdim=True) for s, a in zip(rows, along, strict=True))
        # The mean loss has slopes of 1/n, so that n ∇ℓ∇ℓᵀ/n² is the mean of the outer products.
        return [(size * rises * s).view_as(z) for s, z in zip(rows, outputs, strict=True)]


def _leaf(parameter: Tensor) -> Tensor:
    """Return the leaf that a parameter is, or, where it is a dual number, hangs at."""
    node: Any = parameter.grad_fn
    return parameter if node is None else node.next_functions[0][0].variable


def _refuse_penalties(part: BatchLoss, parameters: Mapping[str, Tensor]) -> None:
    if besides := sorted(bypassing(part.loss, outputs_of(part), {n: _leaf(p) for n, p in parameters.items()})):
        raise ArgumentError(
            f"the loss depends on {', '.join(besides)} besides by the outputs of the model, such as by a penalty, so "
            "that gradients of single examples do not follow from the outputs. Leave the penalty out of loss_fn."
        )
