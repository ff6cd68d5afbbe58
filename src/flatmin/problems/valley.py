r"""Valleys: sets of minima along which the sharpness changes, with the limit of the gradient flow in closed form.

Ahn, Jadbabaie, Sra. *How to Escape Sharp Minima with Random Perturbations*. arXiv:2305.15659, Setting 1:

.. math:: f(x) = \frac1n \sum_{i=1}^n \ell(p_i(x), y_i),\qquad \{p_i = y_i \ \forall i\} \text{ are the minima}

with ∇p_i ≠ 0 there. Here ℓ is a square.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flatmin.errors import ArgumentError
from flatmin.problems.base import Point, PointT, Problem


class Valley(Problem):
    """A sum of squares over examples, and where the gradient flow takes a point of it.

    Args:
        dim: d, the number of coordinates.
        num_examples: n.
        factor: c of the loss ℓ(z, y) = c (z − y)².
    """

    def __init__(self, dim: int, *, num_examples: int, factor: float) -> None:
        super().__init__((dim,))
        self.num_examples = num_examples
        self._factor = factor

    @property
    @abstractmethod
    def flat_minima(self) -> Tensor:
        """Some of the flat minima, exactly; shape (number of them, d)."""

    @property
    @abstractmethod
    def targets(self) -> Tensor:
        """The targets y; shape (n,)."""

    @abstractmethod
    def _predictions(self, w: Tensor) -> Tensor:
        """Return p_i(x); shape (*batch, n)."""

    @abstractmethod
    def _limit(self, w: Tensor) -> Tensor:
        """Return Φ(x); shape (*batch, d)."""

    def _value(self, w: Tensor) -> Tensor:
        return self.loss(w, self.targets.to(w))

    def loss(self, weights: Point, targets: Tensor) -> Tensor:
        """Return f with other targets, for label noise; shape (*batch,).

        Args:
            weights: (*batch, d).
            targets: (*batch, n) or (n,).
        """
        return self._factor * (self._predictions(self.tensor(weights)) - targets).square().mean(-1)

    def example_gradient(self, weights: PointT, example: Tensor) -> PointT:
        """Return the gradient of f_i = ℓ(p_i(x), y_i) at each point, in the form of ``weights``.

        Args:
            weights: (*batch, d).
            example: i, integers from 0 to n − 1 of shape (*batch,).

        Raises:
            ArgumentError: There is no such example, or not one for each point.
        """
        w = self.tensor(weights)
        if example.shape != w.shape[:-1]:
            raise ArgumentError(
                f"example has the shape {tuple(example.shape)}, but the points are {tuple(w.shape[:-1])}: each has an "
                "example of its own. Use expand for the same one at all points."
            )
        if example.numel() and not 0 <= int(example.min()) <= int(example.max()) < self.num_examples:
            raise ArgumentError(
                f"example runs from {int(example.min())} to {int(example.max())}, but there are {self.num_examples} "
                "examples, numbered from 0."
            )
        return self._like(weights, self._example_gradient(w, example))

    def _example_gradient(self, w: Tensor, example: Tensor) -> Tensor:
        def total(w: Tensor) -> Tensor:
            errors = self._predictions(w) - self.targets.to(w)
            return self._factor * errors.gather(-1, example[..., None]).square().sum()

        return torch.func.grad(total)(w)

    def limit(self, weights: PointT) -> PointT:
        """Return Φ(x), where the gradient flow from each point ends, in the form of ``weights`` (Definition 1)."""
        return self._like(weights, self._limit(self.tensor(weights)))

    def trace_gradient(self, weights: PointT) -> PointT:
        """Return ∇[tr̄(Φ(x))], the slope of the trace over d along the minima, in the form of ``weights``."""
        w = self.tensor(weights)
        return self._like(weights, torch.func.grad(lambda w: self._trace(self._limit(w)).sum() / self.dim)(w))
