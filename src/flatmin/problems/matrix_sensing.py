r"""Over-parameterized matrix sensing: many global minima, of which the flat ones are those of low nuclear norm.

.. math:: f(W) = \frac{c}{2n} \sum_{i=1}^n \big(\langle A_i, WW^\top\rangle - y_i\big)^2, \qquad
    y_i = \langle A_i, U_\star U_\star^\top\rangle, \qquad W \in \mathbb R^{d\times d}

Only the symmetric part :math:`S_i` of :math:`A_i` meets the symmetric :math:`WW^\top`, and it is held as its upper
triangle: half of the memory and of the arithmetic, and neither a matrix of d² by d² nor one of n by n is ever formed.
For the same reason Gaussian :math:`A_i`, which the paper has, and their symmetric parts, which the authors' code has,
are one function; what tells the two apart is c, 1 in the paper's loss and 1/2 in that whose gradient the code takes.

With :math:`M = \frac1n\sum_i r_i S_i`, r the residuals, and :math:`Q = \frac1n\sum_i S_i^2`:

.. math:: \nabla f(W) = 2c\, MW, \qquad
    \nabla^2 f(W)[V] = 2c \Big(MV + \frac1n\sum_i \langle S_i, VW^\top + WV^\top\rangle\, S_i W\Big), \qquad
    \operatorname{tr} \nabla^2 f(W) = 2c \big(d \operatorname{tr} M + 2 \langle Q, WW^\top\rangle\big)

Where f is zero, the trace is near its expectation :math:`2c\,(d+1) \|W\|_F^2`, as :math:`\mathbb E S^2 =
\frac{d+1}{2} I` (derived here), and :math:`\|W\|_F^2` is the nuclear norm of :math:`WW^\top` (Proposition 5.1).

Zhang, Li, Ju. *Noise Stability Optimization for Finding Flat Minima*. arXiv:2306.08553, section 5 and equation (16).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from flatmin.checks import choice
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.problems.base import Point, Problem

Convention = Literal["paper", "code"]
_SCALES = {"paper": 1.0, "code": 0.5}

_CHUNK = 250  # measurements that are held as whole matrices at a time


class MatrixSensing(Problem):
    r"""Find W with :math:`WW^\top` of the given measurements.

    Args:
        factor: U⋆, of shape (d, rank).
        measurements: A, of shape (n, d, d); or an iterable of parts of it, none of which is kept.
        convention: ``"paper"``: c = 1, equation (16), whose gradient is (2/n) Σ rᵢ SᵢW. ``"code"``: c = 1/2, whose
            gradient is (1/n) Σ rᵢ SᵢW as the authors' code has it, so that learning rates mean the same.

    Raises:
        ArgumentError: The shapes do not fit, there are no measurements, or the convention is unknown.
        ArgumentTypeError: The factor is not of floating-point numbers.

    Example:
        >>> problem = MatrixSensing(torch.tensor([[1.0], [2.0]]), torch.eye(2).expand(1, 2, 2))   # tr(WWᵀ) should be 5
        >>> problem.value(torch.tensor([[1.0, 0.0], [0.0, 2.0]])), problem.value(torch.eye(2))
        (tensor(0.), tensor(4.5000))
    """

    def __init__(
        self, factor: Tensor, measurements: Tensor | Iterable[Tensor], *, convention: Convention = "paper"
    ) -> None:
        d = _rows(factor)
        super().__init__((d, d), name="W")
        self.convention: str = choice("convention", convention, get_args(Convention))
        self.factor = factor
        # Positions of the upper triangle among the d² entries, and of each of the d² entries in the triangle.
        rows, columns = torch.triu_indices(d, d, device=factor.device)
        self._triangle = rows * d + columns
        place = torch.empty(d, d, dtype=torch.long, device=factor.device)
        place[rows, columns] = place[columns, rows] = torch.arange(len(rows), device=factor.device)
        self._place = place.flatten()
        self._share = torch.where(rows == columns, 1.0, 0.5).to(factor)
        parts = [measurements] if isinstance(measurements, Tensor) else measurements
        packed = [self._packed(part.to(factor)) for part in parts]
        if not sum(map(len, packed)):
            raise ArgumentError("there are no measurements, so that nothing is asked of W. Pass at least one.")
        self._coefficients = torch.cat(packed)
        self.targets: Tensor = self._measured(factor @ factor.mT)

    @property
    def num_measurements(self) -> int:
        """Number of measurements, n."""
        return len(self._coefficients)

    @property
    def minima(self) -> Tensor:
        """U⋆ with columns of zeros: where f is zero, and flattest."""
        return functional.pad(self.factor, (0, self.shape[0] - self.factor.shape[1])).unsqueeze(0)

    def tensor(self, weights: Point) -> Tensor:
        """Return the tensor of ``weights``.

        Raises:
            ArgumentError: It has another shape than the problem, or another name.
            ArgumentTypeError: It is of another type than the measurements.
        """
        w = super().tensor(weights)
        if w.dtype != self.factor.dtype:
            raise ArgumentTypeError(
                f"the weights are of {w.dtype}, but the measurements of {self.factor.dtype}. Convert the weights, or "
                "make the problem in their precision: sensing_task(dtype=...)."
            )
        return w

    def relative_error(self, weights: Point) -> Tensor:
        """Return the mean squared residual over the mean squared target, of shape (*batch,): Figure 6's error."""
        return self._residuals(self.tensor(weights)).square().mean(-1) / self.targets.square().mean()

    def squared_distance(self, weights: Point) -> Tensor:
        r"""Return :math:`\|X - WW^\top\|_F^2 / \|X\|_F^2` with X = U⋆U⋆ᵀ, of shape (*batch,): Figure 6's distance."""
        w, solution = self.tensor(weights), self.factor @ self.factor.mT
        return (solution - w @ w.mT).square().sum((-2, -1)) / solution.square().sum()

    def nuclear_norm(self, weights: Point) -> Tensor:
        r"""Return the nuclear norm of :math:`WW^\top`, which is :math:`\|W\|_F^2`; shape (*batch,)."""
        return self.tensor(weights).square().sum((-2, -1))

    def expected_trace(self, weights: Point) -> Tensor:
        r"""Return :math:`2c\,(d+1)\|W\|_F^2`, what the trace is near where f is zero; shape (*batch,)."""
        return 2 * self._scale * (self.shape[0] + 1) * self.nuclear_norm(weights)

    @property
    def _scale(self) -> float:
        return _SCALES[self.convention]

    def _packed(self, part: Tensor) -> Tensor:
        """Return Aᵢⱼ + Aⱼᵢ above the diagonal and Aᵢᵢ on it, so that ⟨A, X⟩ is a product with X's upper triangle."""
        if part.dim() != 3 or part.shape[1:] != self.shape:
            raise ArgumentError(
                f"the measurements have the shape {tuple(part.shape)}, but the factor has {self.shape[0]} rows, so "
                f"they must be (n, {self.shape[0]}, {self.shape[0]}). Reshape them, or transpose the factor."
            )
        return ((part + part.mT) / 2).flatten(-2)[..., self._triangle] / self._share

    def _unpacked(self, coefficients: Tensor) -> Tensor:
        """Return the symmetric matrices that coefficients stand for; inverse of `_packed` up to the symmetric part."""
        d = self.shape[0]
        return (coefficients * self._share)[..., self._place].unflatten(-1, (d, d))

    def _measured(self, symmetric: Tensor) -> Tensor:
        """Return ⟨Aᵢ, X⟩ for each i; shape (*batch, n)."""
        return symmetric.flatten(-2).index_select(-1, self._triangle) @ self._coefficients.mT

    def _residuals(self, w: Tensor) -> Tensor:
        return self._measured(w @ w.mT) - self.targets

    def _average(self, weights: Tensor) -> Tensor:
        """Return the mean over i of weightᵢ Sᵢ; shape (*batch, d, d)."""
        return self._unpacked(weights @ self._coefficients) / self.num_measurements

    @cached_property
    def _mean_square(self) -> Tensor:
        total = torch.zeros(self.shape, dtype=self.factor.dtype, device=self.factor.device)
        for part in self._coefficients.split(_CHUNK):
            S = self._unpacked(part)
            total += (S @ S).sum(0)
        return total / self.num_measurements

    def _value(self, w: Tensor) -> Tensor:
        return self._scale / 2 * self._residuals(w).square().mean(-1)

    def _gradient(self, w: Tensor) -> Tensor:
        return 2 * self._scale * self._average(self._residuals(w)) @ w

    def _hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        change = v @ w.mT
        along = self._average(self._measured(change + change.mT)) @ w
        return 2 * self._scale * (self._average(self._residuals(w)) @ v + along)

    def _trace(self, w: Tensor) -> Tensor:
        tilt = self._average(self._residuals(w)).diagonal(dim1=-2, dim2=-1).sum(-1)
        return 2 * self._scale * (self.shape[0] * tilt + 2 * ((self._mean_square @ w) * w).sum((-2, -1)))


def _rows(factor: Tensor) -> int:
    """Return d, or say why ``factor`` is no factor of a matrix of d by d."""
    if not factor.is_floating_point():
        raise ArgumentTypeError(f"factor is of {factor.dtype}, but must be of real floating-point numbers.")
    if factor.dim() != 2 or not 0 < factor.shape[1] <= factor.shape[0]:
        raise ArgumentError(
            f"factor has the shape {tuple(factor.shape)}, but must be (d, rank), of rank 1 to d. Pass U⋆ as columns."
        )
    return factor.shape[0]
