"""What a test problem offers: value, gradient, Hessian, trace and minima, at one point or at many at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from flatmin.errors import ArgumentError, ArgumentTypeError

Point = Tensor | Mapping[str, Tensor]
"""Weights: a tensor, or that tensor by its name. Axes before those of the problem's shape are many points at once."""

PointT = TypeVar("PointT", bound=Point)


class Problem(ABC):
    """A function of one tensor whose derivatives and minima are known: what optimizers can be tested on.

    A subclass says what the value is. The derivatives here are those of autograd; a subclass puts its closed forms in
    their place, and is tested against these.

    Everything takes a tensor or ``{name: tensor}``, so that a problem is a loss for a torch optimizer and for
    :func:`flatmin.gradient` alike. Leading axes, of seeds for instance, are many points at once, each by itself.

    Args:
        shape: Of one point.
        name: Of the tensor, where tensors are named.

    Example:
        >>> import flatmin as fm
        >>> from flatmin.problems import Quadratic
        >>> bowl = Quadratic(curvature=2.0, dim=3)
        >>> bowl.value(torch.ones(3)), bowl.trace(torch.ones(3))
        (tensor(3.), tensor(6.))
        >>> fm.gradient(fm.flows.sgd, bowl.value, bowl.named(torch.ones(3)))
        {'w': tensor([2., 2., 2.])}
    """

    def __init__(self, shape: tuple[int, ...], *, name: str = "w") -> None:
        self.shape = shape
        self.name = name

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def minima(self) -> Tensor:
        """Some of the minima, exactly; shape (number of them, *shape)."""

    @abstractmethod
    def _value(self, w: Tensor) -> Tensor:
        """Return the value at each point; shape (*batch,)."""

    def _gradient(self, w: Tensor) -> Tensor:
        return torch.func.grad(lambda v: self._value(v).sum())(w)

    def _hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        return torch.func.jvp(self._gradient, (w,), (v,))[1]

    def _trace(self, w: Tensor) -> Tensor:
        return self.hessian(w).diagonal(dim1=-2, dim2=-1).sum(-1)

    def named(self, w: Tensor) -> dict[str, Tensor]:
        """Return ``w`` by its name, as :func:`flatmin.gradient` has it."""
        return {self.name: w}

    def tensor(self, weights: Point) -> Tensor:
        """Return the tensor of ``weights``.

        Raises:
            ArgumentError: It has another shape than the problem, or another name.
            ArgumentTypeError: It is neither a tensor nor a mapping, or not of floating-point numbers.
        """
        if isinstance(weights, Mapping):
            if set(weights) != {self.name}:
                raise ArgumentError(
                    f"the weights are named {', '.join(map(repr, weights)) or 'by nothing'}, but this problem has one "
                    f"tensor, {self.name!r}. Make them by problem.named(tensor)."
                )
            weights = weights[self.name]
        if not isinstance(weights, Tensor):
            raise ArgumentTypeError(
                f"the weights are of the type {type(weights).__name__}, but must be a tensor, or a mapping of "
                f"{self.name!r} to one. Convert them by torch.as_tensor."
            )
        if tuple(weights.shape[weights.dim() - len(self.shape) :]) != self.shape or weights.dim() < len(self.shape):
            raise ArgumentError(
                f"the weights have the shape {tuple(weights.shape)}, but one point of this problem has {self.shape}; "
                "only axes before these are free, for many points at once. Reshape them, or make another problem."
            )
        if not weights.is_floating_point():
            raise ArgumentTypeError(
                f"the weights are of {weights.dtype}, but derivatives need real floating-point numbers. Pass "
                "weights.double()."
            )
        return weights

    def value(self, weights: Point) -> Tensor:
        """Return f at each point.

        Args:
            weights: (*batch, *shape).

        Returns:
            (*batch,); differentiable as often as one likes.

        Raises:
            ArgumentError: The weights are of another shape or name.
        """
        return self._value(self.tensor(weights))

    def gradient(self, weights: PointT) -> PointT:
        """Return the gradient of f at each point, in the form of ``weights``: a tensor or by name."""
        return self._like(weights, self._gradient(self.tensor(weights)))

    def hessian_product(self, weights: PointT, direction: PointT) -> PointT:
        """Return the Hessian of f at each point times the direction there, in the form of ``weights``."""
        return self._like(weights, self._hessian_product(self.tensor(weights), self.tensor(direction)))

    def hessian(self, weights: Point) -> Tensor:
        """Return the Hessian at each point; shape (*batch, dim, dim), coordinates in the order of ``flatten()``."""
        w = self.tensor(weights)
        batch = w.shape[: w.dim() - len(self.shape)]
        basis = torch.eye(self.dim, dtype=w.dtype, device=w.device).reshape(self.dim, *self.shape)
        columns = [self._hessian_product(w, e.expand_as(w)).reshape(*batch, self.dim) for e in basis]
        return torch.stack(columns, -1)

    def trace(self, weights: Point) -> Tensor:
        """Return the trace of the Hessian at each point; shape (*batch,)."""
        return self._trace(self.tensor(weights))

    def _like(self, weights: PointT, w: Tensor) -> PointT:
        return w if isinstance(weights, Tensor) else self.named(w)  # pyright: ignore[reportReturnType]
