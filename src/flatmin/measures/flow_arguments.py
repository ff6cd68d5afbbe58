"""Checks of what a gradient flow is asked of: a point, and functions of it."""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.measures.dormand_prince import Function


def check_point(x: object) -> None:
    """Say why ``x`` is no point that a flow can start from."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(f"x is a {type(x).__name__}, but the flow starts from a tensor.")
    if x.dtype != torch.float64:
        raise ArgumentTypeError(
            f"x is of {x.dtype}, whose rounding hides where a flow ends. Pass x.double(), and an f that computes in it."
        )
    if not x.numel():
        raise ArgumentError("x has no elements, so that there is nothing to follow. Was an empty tensor passed?")


def check_scalar(name: str, f: Function, x: Tensor) -> None:
    """Say why the function called ``name`` cannot be differentiated at ``x``: it must give a scalar."""
    value = f(x)
    if not isinstance(value, Tensor) or value.dim():
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ArgumentTypeError(
            f"{name}(x) is {what}, but must be a scalar tensor. Is x of shape {tuple(x.shape)} many points at once? "
            "Then pass one after the other."
        )
