r"""The quadratics of the convergence theory, on which every expectation has a closed form.

Zhang, Li, Ju. *Noise Stability Optimization for Finding Flat Minima*. arXiv:2306.08553, Lemmas B.6 and B.7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.checks import positive, whole
from flatmin.problems.base import Problem


class Quadratic(Problem):
    r"""The quadratic :math:`f(w) = \frac C2 \|w\|^2` (Lemma B.6; Lemma B.7 with C = 1/κ).

    Args:
        curvature: C, the one eigenvalue of the Hessian.
        dim: Number of coordinates.

    Example:
        >>> bowl = Quadratic(curvature=3.0, dim=2)
        >>> bowl.value(torch.tensor([[1.0, 1.0], [0.0, 2.0]])), bowl.gradient(torch.tensor([1.0, 2.0]))
        (tensor([3., 6.]), tensor([3., 6.]))
    """

    def __init__(self, curvature: float, dim: int) -> None:
        self.curvature: float = positive("curvature", curvature, hint="It is the eigenvalue of the Hessian.")
        super().__init__((whole("dim", dim, minimum=1, hint="It is the number of coordinates."),))

    @property
    def minima(self) -> Tensor:
        """The origin."""
        return torch.zeros(1, self.dim)

    def _value(self, w: Tensor) -> Tensor:
        return self.curvature / 2 * w.square().sum(-1)

    def _gradient(self, w: Tensor) -> Tensor:
        return self.curvature * w

    def _hessian_product(self, w: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002 (the same everywhere)
        return self.curvature * v

    def _trace(self, w: Tensor) -> Tensor:
        return torch.full(w.shape[:-1], self.curvature * self.dim, dtype=w.dtype, device=w.device)
