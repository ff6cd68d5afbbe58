"""The Hessian of a loss, and its part that comes from the curvature of the network itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.cut import cut
from flatmin.curvature.operators.risk_operator import Product, RiskOperator, loss_gradients
from flatmin.curvature.risk import check_depends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flatmin.curvature.risk import BatchLoss


class Hessian(RiskOperator):
    r"""The Hessian of the mean loss over all examples, as an operator: products only, never the matrix.

    .. math:: H = \nabla^2 f(W), \qquad f(W) = \frac1N \sum_n \ell(W; x_n, y_n)

    A product is exact up to rounding: the gradient's graph of a batch is built once and differentiated once for each
    vector of the block (reverse over reverse; Pearlmutter 1994). Blocks are therefore cheaper than vectors one by one:
    in units of a gradient, about 1 for the graph and 2 a vector. Memory: the graph of one batch at a time, and
    one vector of d coordinates for each column in and out.

    See :class:`RiskOperator` for the arguments, the attributes and what a product leaves untouched.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> H = Hessian(model, torch.nn.functional.mse_loss, [(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))])
        >>> H @ torch.eye(2)                                       # 2 x xᵀ
        tensor([[2., 4.],
                [4., 8.]])
        >>> H @ {"weight": torch.tensor([[1.0, 0.0]])}
        {'weight': tensor([[2., 4.]])}
    """

    @property
    def route(self) -> str:
        """How products are computed."""
        return "reverse over reverse"

    def _prepare(self, part: BatchLoss) -> Product:
        return _ReverseOverReverse(part, self.risk.parameters)


class FunctionalHessian(Hessian):
    r"""The Hessian without its Gauss-Newton part: the curvature of the network, weighed by the slope of the loss.

    .. math:: H - G = \frac1N \sum_n \sum_c \frac{\partial \ell_n}{\partial z_{nc}} \nabla^2 z_{nc}(W)

    with z the outputs of the model (Singh, Bachmann and Hofmann 2021 call it the functional Hessian). It is the Hessian
    of the loss made linear in the outputs, Σ ⟨∂ℓ/∂z, z(W)⟩ with the slope held fixed: a product costs what one with the
    Hessian does, where ``H - G`` would cost both. It vanishes where the network is linear in the weights, and its
    diagonal blocks do where it is piecewise linear in each weight tensor.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> R = FunctionalHessian(model, torch.nn.functional.mse_loss, [(torch.ones(1, 2), torch.zeros(1, 1))])
        >>> R @ torch.ones(2)
        tensor([0., 0.])
    """

    def _prepare(self, part: BatchLoss) -> Product:
        check_depends(part.loss)
        outputs = cut(part.output, part.loss)
        slopes = torch.autograd.grad(part.loss, outputs, retain_graph=True)
        linear = sum(((slope * z).sum() for slope, z in zip(slopes, outputs, strict=True)), torch.zeros(()))
        return _ReverseOverReverse(replace(part, loss=linear), self.risk.parameters)


class _ReverseOverReverse:
    """Differentiates the gradient's graph of a batch, once for each vector."""

    cost = 2.0  # the backward pass through a forward and a backward pass

    def __init__(self, part: BatchLoss, parameters: dict[str, torch.nn.Parameter]) -> None:
        gradients = loss_gradients(part, parameters)
        # A gradient that is constant (a linear layer at the end of nothing else) has no graph: its rows are zero.
        curved = [(g, i) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self.roots: Sequence[Tensor] = [g for g, _ in curved]
        self._owners = [i for _, i in curved]
        self._parameters = list(parameters.values())

    def __call__(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        if not self.roots:
            return [None] * len(self._parameters)
        weights = [vector[i] for i in self._owners]
        return torch.autograd.grad(self.roots, self._parameters, weights, retain_graph=keep, allow_unused=True)
