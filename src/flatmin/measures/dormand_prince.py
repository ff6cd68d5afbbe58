"""One step down the gradient flow, by the pair of orders 5 and 4 of Dormand and Prince (1980)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# A step by its stages, the last of which is its end; and the weights of its difference to the embedded order 4.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def stages(gradient: Function, x: Tensor, h: float, first: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Take one step.

    Args:
        gradient: Of the function that falls.
        x: Where from.
        h: Length of the step, in the time of the flow.
        first: The slope -∇f at ``x``, if it is known.

    Returns:
        Where the step ends, and the slopes it met on its way, but for that at its end.
    """
    slopes, y = [-gradient(x) if first is None else first], x
    for i, weights in enumerate(_STAGES):
        y = x + h * sum((w * k for w, k in zip(weights, slopes, strict=True) if w), start=torch.zeros_like(x))
        if i < len(_STAGES) - 1:
            slopes.append(-gradient(y))
    return y, slopes


def advanced(gradient: Function, x: Tensor, h: float) -> Tensor:
    """Return where a step of length ``h`` ends; differentiable."""
    return stages(gradient, x, h)[0]


def difference(slopes: Sequence[Tensor]) -> Tensor:
    """Return by what the two orders differ, per length of the step: the estimate of its error.

    Args:
        slopes: Those that :func:`stages` returned, and that at the end.
    """
    return sum((w * k for w, k in zip(_DIFFERENCE, slopes, strict=True) if w), start=torch.zeros_like(slopes[0]))
