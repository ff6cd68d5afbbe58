"""The two parts of the Hessian's quadratic forms, each by itself, from forward passes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.curvature.operators.forward_only import ForwardOnlyHessian
from flatmin.errors import ArgumentTypeError

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.operators.points import Centre, Parts


class _Part(ForwardOnlyHessian):
    """One part, which is known where the loss can be told from the network."""

    def _look_at(self, centre: Centre) -> None:
        if centre.is_loss:
            raise ArgumentTypeError(
                "the loss cannot be told from the network: the model returns it, or it is made of more than the "
                "model's outputs, so its Gauss-Newton matrix is not known. Let loss_fn make the loss from the outputs "
                "(logits) alone."
            )


class ForwardOnlyGGN(_Part):
    r"""The Gauss-Newton matrix's quadratic forms from forward passes alone; it has no products.

    .. math:: v^\top G v \approx \frac1N \sum_n \Big(\frac{z_+ - z_-}{2h}\Big)^{\!\top} \nabla_z^2 \ell_n
        \Big(\frac{z_+ - z_-}{2h}\Big)

    First differences of the outputs bear smaller steps than second ones, and kinks in the network disturb them less.
    See :class:`ForwardOnlyHessian` for all else.

    Raises:
        ArgumentTypeError: A product is asked for, or the loss is no function of the outputs.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> batches = [(torch.tensor([[1.0, 2.0]]).double(), torch.zeros(1, 1).double())]
        >>> ForwardOnlyGGN(model, torch.nn.functional.mse_loss, batches).quadratic_forms(torch.eye(2).double())
        tensor([2.0000, 8.0000], dtype=torch.float64)
    """

    _ROUNDING = 1
    _WHAT = "first differences"
    _WITH_PRODUCTS = "GGN"

    def _combine(self, parts: Parts) -> Tensor:
        return parts.outer


class ForwardOnlyFunctional(_Part):
    r"""The quadratic forms of H - GGN from forward passes alone; it has no products.

    .. math:: v^\top (H - G) v \approx
        \frac1N \sum_n \frac{\partial \ell_n}{\partial z} \cdot \frac{z_+ - 2z + z_-}{h^2}

    See :class:`ForwardOnlyHessian` for all else, and :class:`FunctionalHessian` for what it is.

    Raises:
        ArgumentTypeError: A product is asked for, or the loss is no function of the outputs.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> batches = [(torch.tensor([[1.0, 2.0]]).double(), torch.zeros(1, 1).double())]
        >>> ForwardOnlyFunctional(model, torch.nn.functional.mse_loss, batches).quadratic_forms(torch.eye(2).double())
        tensor([0., 0.], dtype=torch.float64)
    """

    _WITH_PRODUCTS = "FunctionalHessian"

    def _combine(self, parts: Parts) -> Tensor:
        return parts.functional
