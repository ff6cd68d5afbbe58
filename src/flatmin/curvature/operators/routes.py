"""The ways to a product, and how one recognises that the exact ones are closed."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch

from flatmin.curvature.graph import nodes_behind
from flatmin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flatmin.curvature.graph import Root

Route = Literal["auto", "reverse", "forward", "differences"]
"""``"reverse"``: the gradient's graph of a batch is kept and differentiated again, the cheapest for many vectors.
``"forward"``: dual numbers go forward and backward through the model; no graph is kept. ``"differences"``: central
differences of first derivatives at displaced weights. ``"auto"``: reverse, and differences where there is no second
derivative."""

_CLOSED = (  # torch's messages where a first derivative exists and a second does not
    (re.compile(r"derivative for '?([\w:.]+)'? is not implemented"), "{}"),
    (re.compile(r"does not currently support double backward"), "a compiled graph"),
    (re.compile(r"differentiate twice a function that was marked with @once_differentiable"), "once_differentiable"),
    (re.compile(r"[Dd]ouble backwards? is not supported for CuDNN RNNs"), "a cuDNN RNN"),
    (re.compile(r"implement it with forward AD|Trying to use forward AD with|support forward AD"), "no forward mode"),
    (re.compile(r"jvp is not implemented"), "no forward mode"),
)
_REENTRANT = "use_reentrant=True, torch.utils.checkpoint is incompatible"
_KINK = re.compile(
    r"(ReluBackward|LeakyRelu|PreluKernel|Rrelu|Hardtanh|Threshold|Hardswish|Hardsigmoid|Softshrink|Hardshrink|"
    r"MaxPool\dD|MaxBackward|Maximum|Minimum|AmaxBackward|AminBackward|AbsBackward|Clamp|L1Loss)"
)


class NoSecondDerivativeError(ArgumentTypeError):
    """An operation of the model has a first derivative and no second one.

    Args:
        reason: What has none.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"no second derivative by this route: {reason}. Pass route='auto' or route='differences', which needs "
            "first derivatives alone; for attention, load the model with its plain implementation (attn_implementation="
            "'eager' in transformers)."
        )


@contextmanager
def second_derivatives() -> Iterator[None]:
    """Say in flatmin's own words where torch finds that a second derivative does not exist; let other errors through.

    Raises:
        ArgumentError: Reentrant activation checkpointing, which forbids even single gradients of chosen tensors.
        NoSecondDerivativeError: A kernel has no second derivative.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if _REENTRANT in message:
            raise ArgumentError(
                "the model uses activation checkpointing with use_reentrant=True, which allows nothing but "
                "loss.backward(). Pass use_reentrant=False to torch.utils.checkpoint.checkpoint (in transformers: "
                "gradient_checkpointing_enable({'use_reentrant': False})), or measure in mode='eval' if the model "
                "checkpoints in training mode alone."
            ) from error
        for pattern, reason in _CLOSED:
            if (found := pattern.search(message)) is not None:
                raise NoSecondDerivativeError(reason.format(*found.groups())) from error
        raise


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context for derivatives where forward passes run under autocast: in the types that these left."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()


def check_twice_differentiable(gradients: Iterable[Root]) -> None:
    """Raise NoSecondDerivativeError if a gradient hangs at a node that would refuse its derivative.

    torch runs only those nodes that lead to what is asked for; behind a function marked ``once_differentiable`` nothing
    does, so the missing part of the second derivative would count as zero without a word.
    """
    for node in nodes_behind(gradients):
        if node.name() in ("DelayedError", "torch::autograd::DelayedError", "Error", "torch::autograd::Error"):
            raise NoSecondDerivativeError("a function marked once_differentiable")


def kinks_behind(roots: Iterable[Root]) -> list[str]:
    """Return the kinds of operations in the graph behind ``roots`` whose derivative jumps (ReLU, max-pooling, ...).

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> kinks_behind([w.relu().tanh().sum()])
        ['Relu']
    """
    found = (_KINK.search(node.name()) for node in nodes_behind(roots))
    return sorted({match[0].removesuffix("Backward") for match in found if match is not None})
