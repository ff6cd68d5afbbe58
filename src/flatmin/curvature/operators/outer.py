"""Outer-product curvature: the generalised Gauss-Newton matrix and the empirical Fisher matrix."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.cut import cut
from flatmin.curvature.operators.risk_operator import Product, RiskOperator
from flatmin.curvature.risk import check_depends
from flatmin.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flatmin.curvature.risk import BatchLoss


class _OuterProduct:
    """JᵀMJ for one batch, J the Jacobian of the outputs.

    J v comes from the graph of u ↦ Jᵀu, which is linear in u: its derivative along v is J v, by a backward pass that
    never meets the weights. Both graphs are built once.
    """

    cost = 4 / 3  # a backward pass through the graph of a backward pass, and a backward pass

    def __init__(self, part: BatchLoss, parameters: dict[str, torch.nn.Parameter]) -> None:
        check_depends(part.loss)
        self._parameters = list(parameters.values())
        self._outputs = cut(part.output, part.loss)
        self._slopes = torch.autograd.grad(part.loss, self._outputs, create_graph=True)
        self._dual = [torch.zeros_like(z, requires_grad=True) for z in self._outputs]
        pulled = torch.autograd.grad(self._outputs, self._parameters, self._dual, create_graph=True, allow_unused=True)
        self._owners = [i for i, g in enumerate(pulled) if g is not None]
        self.roots: Sequence[Tensor] = [g for g in pulled if g is not None]

    def __call__(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        if not self.roots:
            return [None] * len(self._parameters)
        along = torch.autograd.grad(
            self.roots, self._dual, [vector[i] for i in self._owners], retain_graph=True, materialize_grads=True
        )
        curved = self._curve(along)
        return torch.autograd.grad(self._outputs, self._parameters, curved, retain_graph=keep, allow_unused=True)

    @abstractmethod
    def _curve(self, along: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return M times J v, which is ``along``."""
        raise NotImplementedError


class GGN(RiskOperator):
    r"""The generalised Gauss-Newton matrix of the mean loss (Schraudolph 2002).

    .. math:: G = \frac1N \sum_n J_n^\top \big(\nabla_z^2 \ell_n\big) J_n, \qquad J_n = \frac{\partial z_n}{\partial W}

    with z the outputs of the model that the loss is made of. For cross-entropy it is the Fisher matrix. It is positive
    semidefinite where the loss is convex in the outputs, and the Hessian of the network made linear in its weights.

    See :class:`RiskOperator` for the arguments, the attributes and what a product leaves untouched. In units of a
    gradient, about 1 for the graph and 4/3 a vector.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> G = GGN(model, torch.nn.functional.mse_loss, [(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))])
        >>> G @ torch.eye(2)                                       # 2 x xᵀ: the network is linear
        tensor([[2., 4.],
                [4., 8.]])
    """

    @property
    def route(self) -> str:
        """How products are computed."""
        return "two vector-Jacobian products"

    def _prepare(self, part: BatchLoss) -> Product:
        return _GaussNewton(part, self.risk.parameters)


class _GaussNewton(_OuterProduct):
    def _curve(self, along: Sequence[Tensor]) -> Sequence[Tensor]:
        curved = [(slope, a) for slope, a in zip(self._slopes, along, strict=True) if slope.requires_grad]
        if not curved:  # the loss is linear in the outputs
            return [torch.zeros_like(z) for z in self._outputs]
        slopes, weights = zip(*curved, strict=True)
        return torch.autograd.grad(slopes, self._outputs, weights, retain_graph=True, materialize_grads=True)


class EmpiricalFisher(RiskOperator):
    r"""The mean outer product of the gradients of single examples.

    .. math:: F = \frac1N \sum_n \nabla \ell_n \nabla \ell_n^\top

    often called the empirical Fisher matrix. (It is not the Fisher matrix, which averages over the labels that the
    model would draw: that is :class:`GGN` for cross-entropy.) Gradients of single examples are never formed: a product
    takes J v and weighs each example by the slope of its loss. The examples must be the first dimension of the outputs,
    and independent of each other, and ``loss_fn`` their mean.

    See :class:`RiskOperator` for the arguments, the attributes and what a product leaves untouched.

    Raises:
        DataError: The outputs do not have one row an example (on multiplying).

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> batches = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2))]
        >>> F = EmpiricalFisher(model, lambda z, y: z.mean(), batches)
        >>> F @ torch.eye(2)
        tensor([[ 5.,  7.],
                [ 7., 10.]])
    """

    @property
    def route(self) -> str:
        """How products are computed."""
        return "two vector-Jacobian products"

    def _prepare(self, part: BatchLoss) -> Product:
        return _Fisher(part, self.risk.parameters)


class _Fisher(_OuterProduct):
    def __init__(self, part: BatchLoss, parameters: dict[str, torch.nn.Parameter]) -> None:
        super().__init__(part, parameters)
        self._size = part.size
        for z in self._outputs:
            if z.dim() == 0 or z.shape[0] != part.size:
                raise DataError(
                    f"the loss is made of outputs of shape {tuple(z.shape)}, but batch {part.index} has {part.size} "
                    "examples: gradients of single examples cannot be told apart. The first dimension of the outputs "
                    "must be that of the targets."
                )

    def _curve(self, along: Sequence[Tensor]) -> Sequence[Tensor]:
        slopes = [slope.detach().flatten(1) if slope.dim() > 1 else slope.detach()[:, None] for slope in self._slopes]
        rises = sum((s * a.reshape_as(s)).sum(1, keepdim=True) for s, a in zip(slopes, along, strict=True))
        # The mean loss has slopes of 1/n, so that n ∇ℓ∇ℓᵀ/n² is the mean of the outer products.
        return [(self._size * rises * s).view_as(z) for s, z in zip(slopes, self._outputs, strict=True)]
