"""Operators: what estimators work on. Anything with ``shape``, ``dtype``, ``device`` and ``@`` is one."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode


class LinearOperator(Protocol):
    """A square linear map; a dense ``torch.Tensor`` of shape (d, d) is one."""

    @property
    def shape(self) -> Sequence[int]:
        """(d, d)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors it takes and gives."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of these vectors."""
        ...

    def __matmul__(self, block: Tensor, /) -> Tensor:
        """Return the product with a vector (d,) or a block of vectors (d, m), of the same shape."""
        ...


def dimension(operator: LinearOperator) -> int:
    """Return d of a (d, d) operator.

    Raises:
        ArgumentError: It is not square, or empty.
        ArgumentTypeError: It is no operator, or one of integers or complex numbers.
    """
    missing = [name for name in ("shape", "dtype", "device", "__matmul__") if not hasattr(operator, name)]
    if missing:
        raise ArgumentTypeError(
            f"the operator is a {type(operator).__name__} without {', '.join(missing)}. Pass Hessian(model, loss_fn, "
            "batches), a matrix as torch.Tensor, or an object with shape, dtype, device and @."
        )
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ArgumentError(f"the operator has shape {shape}, but it must be square, (d, d) with d at least 1.")
    if not operator.dtype.is_floating_point:
        raise ArgumentTypeError(
            f"the operator has dtype {operator.dtype}, but a real floating type is needed: .float()."
        )
    return shape[0]


class Hessian:
    r"""The Hessian of the mean loss over all examples, as an operator: products only, never the matrix.

    .. math:: H = \nabla^2 f(W), \qquad f(W) = \frac1N \sum_n \ell(W; x_n, y_n)

    A product is exact up to rounding: the gradient's graph of a batch is built once and differentiated once for each
    vector of the block (reverse over reverse; Pearlmutter 1994). Blocks are therefore cheaper than vectors one by one:
    in units of a gradient, about 0.7 for the graph and 2 to 2.5 a vector. Memory: the graph of one batch at a time, and
    one vector of d coordinates for each column in and out.

    The operator looks at the model's present weights and changes nothing: weights, ``.grad``, buffers, modes and random
    states are left as found, by exceptions too. Frozen parameters are left out, parameters without influence on the
    loss have zero rows, shared ones count once. Coordinates lie in the order of ``model.named_parameters()``: see
    ``layout``.

    Args:
        model: The model.
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch. Batches are then averaged by their number of examples.
        batches: A ``DataLoader``, a list, or another re-iterable of (inputs, targets) or of mappings.
        mode: ``"eval"`` puts every module into evaluation mode for the product; ``"current"`` takes the modules as they
            stand (batch-norm by batch statistics; dropout with the same masks in every product).

    Attributes:
        shape: (d, d), d being the number of trainable parameters.
        dtype: Type of the vectors: that of the parameters, float32 for parameters of lower precision.
        device: Device of the vectors: that of the first parameter.
        layout: Splits a flat vector into named tensors and back.

    Raises:
        ArgumentError: No parameter requires gradients.
        ArgumentTypeError: An argument is of the wrong kind, or ``batches`` can be read only once.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> H = Hessian(model, nn.functional.mse_loss, [(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))])
        >>> H @ torch.eye(2)                                       # 2 x xᵀ
        tensor([[2., 4.],
                [4., 8.]])
        >>> H.layout.split(H @ torch.tensor([1.0, 0.0]))
        {'weight': tensor([[2., 4.]])}
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, batches: Iterable[Any], *, mode: Mode = "eval") -> None:
        self._risk = EmpiricalRisk(model, loss_fn, batches, mode=mode)
        self.layout = self._risk.layout
        self.shape = (self.layout.numel, self.layout.numel)
        self.device = self._risk.device
        types = (parameter.dtype for parameter in self._risk.parameters.values())
        self.dtype: torch.dtype = reduce(torch.promote_types, types, torch.float32)

    def __repr__(self) -> str:
        """Show what it is the Hessian of."""
        return f"Hessian({type(self._risk.model).__name__}, {self.shape[0]} parameters)"

    def __matmul__(self, block: Tensor) -> Tensor:
        """Return H times a vector (d,) or a block of vectors (d, m), of the same shape, in ``dtype``.

        Raises:
            ArgumentError: ``block`` has another shape or is not finite.
            ArgumentTypeError: ``block`` is no tensor, or the loss no scalar tensor.
            DataError: The data are empty, changed since the last product, or of unknown form.
            NonFiniteError: Weights, loss or product hold NaN or infinity.
        """
        self._check(block)
        with self._risk.observed(differentiable=True):
            self._risk.check_weights()
            columns = block.detach().to(self.device, self.dtype, copy=True).reshape(self.shape[0], -1)
            product, count = torch.zeros_like(columns), 0
            for loss, size in self._risk.losses():
                self._add_products(loss, columns, product, weight=size)
                count += size
            product /= count
            if not product.isfinite().all():
                raise NonFiniteError(
                    "the product with the Hessian holds NaN or infinity although loss and weights are finite: a second "
                    "derivative does not exist or overflows (sqrt, norm or a power at 0?). Add a small eps there."
                )
            return product.reshape(block.shape)

    def _add_products(self, loss: Tensor, columns: Tensor, product: Tensor, *, weight: int) -> None:
        """Add ``weight`` times the Hessian of ``loss`` times ``columns`` to ``product``."""
        parameters = list(self._risk.parameters.values())
        gradients, owners = self._gradients(loss, parameters)
        last = columns.shape[1] - 1
        for j in range(columns.shape[1] if gradients else 0):
            vector = columns[:, j].split(self.layout.sizes)
            vectors = [vector[i].view_as(parameters[i]).to(parameters[i]) for i in owners]
            parts = torch.autograd.grad(gradients, parameters, vectors, retain_graph=j < last, allow_unused=True)
            for into, part in zip(product[:, j].split(self.layout.sizes), parts, strict=True):
                if part is not None:
                    into.add_(part.detach().reshape(-1).to(self.device, self.dtype), alpha=weight)

    def _gradients(self, loss: Tensor, parameters: list[nn.Parameter]) -> tuple[list[Tensor], list[int]]:
        """Return the gradients of ``loss`` that depend on the parameters, and their positions."""
        if not loss.requires_grad:
            raise ArgumentTypeError(
                "the loss depends on no trainable parameter. Likely cause: detach(), .data or no_grad inside the model "
                "or the loss, or only frozen parameters are used."
            )
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        for name, gradient in zip(self.layout.shapes, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise ArgumentTypeError(
                    f"parameter {name!r} has a sparse gradient, which has no second derivative. Make it dense: "
                    "embedding.sparse = False."
                )
        # A gradient that is constant (a linear layer at the end of nothing else) has no graph: its rows are zero.
        curved = [(g, i) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        return [g for g, _ in curved], [i for _, i in curved]

    def _check(self, block: Tensor) -> None:
        if not isinstance(block, Tensor):
            raise ArgumentTypeError(f"the Hessian was multiplied by a {type(block).__name__}, but a tensor is needed.")
        if block.dim() not in (1, 2) or block.shape[0] != self.shape[0]:
            raise ArgumentError(
                f"the vector has shape {tuple(block.shape)}, but the model has {self.shape[0]} trainable parameters: "
                f"({self.shape[0]},) or ({self.shape[0]}, m) is needed. H.layout.flatten(named tensors) makes one."
            )
        if not block.isfinite().all():
            raise ArgumentError("the vector holds NaN or infinity, so the product would too. Look where it came from.")
