"""The Hessian of a loss, and its part that comes from the curvature of the network itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

from flatmin.curvature.batch import check_depends
from flatmin.curvature.cut import outputs_of
from flatmin.curvature.operators.duals import tangents, without_tangents
from flatmin.curvature.operators.forward_only import ForwardOnlyHessian
from flatmin.curvature.operators.forward_parts import ForwardOnlyFunctional
from flatmin.curvature.operators.risk_operator import RiskOperator
from flatmin.curvature.operators.routes import NoSecondDerivativeError
from flatmin.curvature.operators.steps import halved

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from flatmin.curvature.batch import Batch, BatchLoss
    from flatmin.curvature.operators.session import Product
    from flatmin.curvature.operators.steps import Line


class Hessian(RiskOperator):
    r"""The Hessian of the mean loss over all examples, as an operator: products only, never the matrix.

    .. math:: H = \nabla^2 f(W), \qquad f(W) = \frac1N \sum_n \ell(W; x_n, y_n)

    A product is exact up to rounding. By default the gradient's graph of a batch is built once and differentiated once
    for each vector of the block (reverse over reverse; Pearlmutter 1994). Blocks are therefore cheaper than vectors one
    by one: in units of a gradient, about 1 for the graph and 2 a vector. Memory: the graph of one batch at a time, and
    one vector of d coordinates for each column in and out. Forward over reverse costs 3 a vector and keeps no graph.

    Attention of ``scaled_dot_product_attention`` runs by its math kernel meanwhile, and compiled code uncompiled:
    neither fused kernels nor compiled graphs have second derivatives. Where none exists anyway (flex attention, CTC,
    sparse gradients, functions marked ``once_differentiable``), products are central differences of gradients at
    displaced weights: see :class:`FiniteDifferenceHessian` for what that means, above all for ReLU.

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

    def forward_only(self) -> ForwardOnlyHessian:
        """Return the operator that gives the same quadratic forms, up to differences, by forward passes alone."""
        return self.related(ForwardOnlyHessian)

    def _prepare(self, part: BatchLoss) -> Product:
        return _ReverseOverReverse(self._loss(part), self.risk.parameters)

    def _push(self, part: BatchLoss, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        loss = self._loss(part)
        try:
            return tangents(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
        except RuntimeError as error:
            if "ZeroTensors are immutable" not in str(error):
                raise
        # A gap of torch: the derivative of mse_loss by targets without a tangent. So the loss is differentiated in
        # reverse, twice, and only the model by dual numbers.
        outputs = outputs_of(part)
        along = [torch.zeros_like(z) if t is None else t for z, t in zip(outputs, tangents(outputs), strict=True)]
        with without_tangents():
            slopes = torch.autograd.grad(loss, outputs, create_graph=True)
            curved = torch.autograd.grad(slopes, outputs, along, retain_graph=True, materialize_grads=True)
        seed = [forward_ad.make_dual(slope.detach(), c) for slope, c in zip(slopes, curved, strict=True)]
        return tangents(torch.autograd.grad(outputs, parameters, seed, allow_unused=True))

    def _difference(self, item: Batch, line: Line, s: float) -> Sequence[Tensor | None]:
        ahead, behind = (self._gradients(self._loss(line.at(place, item))) for place in (s, -s))
        return halved(ahead, behind, s)

    def _gradients(self, loss: Tensor) -> Sequence[Tensor | None]:
        check_depends(loss)
        return torch.autograd.grad(loss, list(self.risk.parameters.values()), allow_unused=True)

    def _loss(self, part: BatchLoss) -> Tensor:
        """Return what the operator is the second derivative of."""
        return part.loss


class FunctionalHessian(Hessian):
    r"""The Hessian without its Gauss-Newton part: the curvature of the network, weighed by the slope of the loss.

    .. math:: H - G = \frac1N \sum_n \sum_c \frac{\partial \ell_n}{\partial z_{nc}} \nabla^2 z_{nc}(W)

    with z the outputs of the model (Singh, Bachmann and Hofmann 2021 call it the functional Hessian). It is the Hessian
    of the loss made linear in the outputs, Σ ⟨∂ℓ/∂z, z(W)⟩ with the slope held fixed: a product costs what one with the
    Hessian does, where ``H - G`` would cost both. It vanishes where the network is linear in the weights, and its
    diagonal blocks do where it is piecewise linear in each weight tensor. A penalty on the weights, which is no
    function of the outputs, belongs to H alone: it is neither here nor in G.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> R = FunctionalHessian(model, torch.nn.functional.mse_loss, [(torch.ones(1, 2), torch.zeros(1, 1))])
        >>> R @ torch.ones(2)
        tensor([0., 0.])
    """

    _DIFFERENCE = 3.0  # a gradient for the slopes, and two

    def forward_only(self) -> ForwardOnlyFunctional:
        """Return the operator that gives the same quadratic forms, up to differences, by forward passes alone."""
        return self.related(ForwardOnlyFunctional)

    def _loss(self, part: BatchLoss) -> Tensor:
        return _linear(part, _slopes(part))

    def _difference(self, item: Batch, line: Line, s: float) -> Sequence[Tensor | None]:
        slopes = _slopes(line.at(0.0, item))
        ahead, behind = (self._gradients(_linear(line.at(place, item), slopes)) for place in (s, -s))
        return halved(ahead, behind, s)


def _slopes(part: BatchLoss) -> Sequence[Tensor]:
    """Return the derivatives of a batch's loss by the outputs, as constants."""
    with without_tangents():
        return torch.autograd.grad(part.loss, outputs_of(part), retain_graph=True)


def _linear(part: BatchLoss, slopes: Sequence[Tensor]) -> Tensor:
    """Return the batch's loss made linear in the outputs."""
    outputs = outputs_of(part)
    return sum(((slope * z).sum() for slope, z in zip(slopes, outputs, strict=True)), torch.zeros(()))


class _ReverseOverReverse:
    """Differentiates the gradient's graph of a batch, once for each vector."""

    cost = 2.0  # the backward pass through a forward and a backward pass

    def __init__(self, loss: Tensor, parameters: dict[str, torch.nn.Parameter]) -> None:
        gradients = _gradients_with_graph(loss, parameters)
        # A gradient that is constant (a linear layer at the end of nothing else) has no graph: its rows are zero.
        curved = [(g, i) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self.roots = [get_gradient_edge(g) for g, _ in curved]  # the numbers themselves are not needed
        self._owners = [i for _, i in curved]
        self._parameters = list(parameters.values())

    def __call__(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        if not self.roots:
            return [None] * len(self._parameters)
        weights = [vector[i] for i in self._owners]
        return torch.autograd.grad(self.roots, self._parameters, weights, retain_graph=keep, allow_unused=True)


def _gradients_with_graph(loss: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a batch's loss with their graph, None for parameters without influence.

    Raises:
        ArgumentTypeError: The loss depends on no parameter.
        NoSecondDerivativeError: A gradient is sparse.
    """
    check_depends(loss)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise NoSecondDerivativeError(f"{name!r} has a sparse gradient (embedding.sparse = False makes it dense)")
    return gradients
