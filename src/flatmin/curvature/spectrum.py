"""What is known of a spectrum as a whole, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from flatmin.checks import nonnegative, whole
from flatmin.curvature.results import Estimate, Measured, student_quantile
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Band(NamedTuple):
    """A function of an eigenvalue with its pointwise confidence band; all of shape (n,).

    Attributes:
        x: Where.
        value: The estimate there.
        stderr: Its standard error.
        lower: Lower end of the band, at least zero.
        upper: Upper end of the band.
        width: Standard deviation σ of the smoothing, in units of the eigenvalues.
    """

    x: Tensor
    value: Tensor
    stderr: Tensor
    lower: Tensor
    upper: Tensor
    width: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SpectralDensity(Measured):
    r"""The distribution of the eigenvalues of a symmetric operator; see :class:`Measured` for what it cost.

    Each of n independent probes stands for the spectrum without the outliers by m nodes with weights; each outlier has
    weight 1/d; all weights of a probe, and those of the outliers, add up to one. What follows is a mean over probes
    with its standard error, and Student's law for its interval. Where a handful of eigenvalues is sampled and not
    known, the law of the mean is skewed, and intervals from eight probes hold the truth less often than they say, some
    90 % instead of 95 %.

    What is smoothed is smoothed by a Gaussian of standard deviation ``width``, by default the range of the nodes
    divided by m: a quadrature of m nodes cannot tell finer structure from none, and about this much smoothing makes its
    own error small against that of the probes.

    Attributes:
        nodes: Eigenvalues of each probe's tridiagonal matrix, shape (n, m).
        weights: Their weights, shape (n, m).
        outliers: Eigenvalues known one by one, shape (k,).
        dimension: d, the number of eigenvalues.

    Example:
        >>> SpectralDensity(nodes=torch.tensor([[0.0, 1.0], [0.0, 1.2]]), weights=torch.full((2, 2), 0.45),
        ...                 outliers=torch.tensor([8.0]), dimension=10, num_matvecs=4)
        SpectralDensity(10 eigenvalues in [0, 8], trace 12.95 ± 0.45, 4 matvecs)
    """

    nodes: Tensor
    weights: Tensor
    outliers: Tensor
    dimension: int

    @property
    def width(self) -> float:
        """The default standard deviation of the smoothing."""
        if not self.nodes.numel():
            return 1e-3 * (float(self.outliers.abs().max()) or 1.0)
        seen = self.nodes[self.weights > 0]
        spread = float(seen.max() - seen.min()) / self.nodes.shape[1]
        return max(spread, 1e-3 * float(seen.abs().max())) or 1.0

    def expectation(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """Return the mean of ``function`` over all eigenvalues, tr f(A) / d.

        Args:
            function: Of a tensor of eigenvalues, elementwise.
        """
        known = function(self.outliers).sum(-1) / self.dimension
        return _estimate((function(self.nodes) * self.weights).sum(-1) + known)

    def moment(self, order: int) -> Estimate:
        """Return tr Aᵖ / d, the mean of the p-th powers of the eigenvalues.

        Args:
            order: p. Up to 2 m - 1 the quadrature is exact, and so the error is that of the probes alone.
        """
        power = whole("order", order, minimum=0, hint="It is the power of the eigenvalues.")
        return self.expectation(lambda x: x**power)

    @property
    def trace(self) -> Estimate:
        """The sum of all eigenvalues."""
        return self.expectation(lambda x: self.dimension * x)

    def mass_below(self, x: float, width: float | None = None) -> Estimate:
        """Return the share of eigenvalues below ``x``.

        Args:
            x: The bound.
            width: Standard deviation of the smoothing; 0 takes the nodes as they are, which is right where ``x`` lies
                in a gap of the spectrum, and off by up to a node's weight elsewhere.
        """
        smoothing = self._width(width)
        return self.expectation(lambda values: _below(values, torch.tensor(x, dtype=values.dtype), smoothing))

    def mass_between(self, low: float, high: float, width: float | None = None) -> Estimate:
        """Return the share of eigenvalues between ``low`` and ``high``; see :meth:`mass_below`.

        With (-ε, ε) and ``width`` 0 it is the share of directions in which the operator is flat.
        """
        smoothing = self._width(width)
        first, last = torch.tensor([low, high], dtype=self.nodes.dtype)
        return self.expectation(lambda values: _below(values, last, smoothing) - _below(values, first, smoothing))

    def density(self, grid: Tensor | None = None, width: float | None = None, confidence: float = 0.95) -> Band:
        r"""Return the smoothed density of the eigenvalues with its band.

        .. math:: \phi(x) = \frac1d \sum_i \mathcal N(x; \lambda_i, \sigma^2)

        Args:
            grid: Where, shape (n,). Default: :meth:`grid`.
            width: σ.
            confidence: Of the pointwise band.
        """
        smoothing = self._width(width)
        if not smoothing:
            raise ArgumentError("width is 0, but a density of points is none. Leave it out, or use mass_below.")
        factor = 1 / (math.sqrt(2 * math.pi) * smoothing)
        kernel = lambda x: factor * torch.exp(-0.5 * (x / smoothing).square())  # noqa: E731
        return self._band(grid, smoothing, confidence, lambda values, x: kernel(values - x))

    def cumulative(self, grid: Tensor | None = None, width: float | None = None, confidence: float = 0.95) -> Band:
        """Return the share of eigenvalues below every point of a grid; arguments as for :meth:`density`."""
        smoothing = self._width(width)
        return self._band(grid, smoothing, confidence, lambda values, x: _below(values, x, smoothing))

    def grid(self, width: float | None = None) -> Tensor:
        """Return points that show the density: even ones over the bulk, and some around each outlier."""
        smoothing = self._width(width) or self.width
        around = smoothing * torch.linspace(-4, 4, 33, dtype=torch.float64)
        parts = [(self.outliers.double()[:, None] + around).reshape(-1)]
        if self.nodes.numel():
            seen = self.nodes[self.weights > 0].double()
            low, high = float(seen.min()) - 4 * smoothing, float(seen.max()) + 4 * smoothing
            parts.append(torch.linspace(low, high, 513, dtype=torch.float64))
        return torch.cat(parts).unique()

    def __repr__(self) -> str:
        """Show range, trace and cost in one line."""
        values = torch.cat([self.nodes[self.weights > 0], self.outliers])
        trace = self.trace
        return (
            f"SpectralDensity({self.dimension} eigenvalues in [{float(values.min()):.4g}, {float(values.max()):.4g}], "
            f"trace {trace.value:.4g} ± {trace.stderr:.2g}, {self.cost()})"
        )

    def _width(self, width: float | None) -> float:
        if width is None:
            return self.width
        return nonnegative("width", width, hint="It is the standard deviation of the smoothing.")

    def _band(
        self, grid: Tensor | None, width: float, confidence: float, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Band:
        if not 0 < confidence < 1:
            raise ArgumentError(f"confidence is {confidence}, but it must lie between 0 and 1, such as 0.95.")
        x = (self.grid(width) if grid is None else torch.as_tensor(grid)).to(self.nodes)
        known = function(self.outliers[:, None], x).sum(0) / self.dimension
        rows = [w @ function(nodes[:, None], x) for nodes, w in zip(self.nodes, self.weights, strict=True)]
        drawn = torch.stack(rows) + known
        value, stderr = drawn.mean(0), drawn.std(0) / math.sqrt(len(drawn))
        half = student_quantile((1 + confidence) / 2, len(drawn) - 1) * stderr
        return Band(x, value, stderr, (value - half).clamp(min=0.0), value + half, width)


def _below(values: Tensor, x: Tensor, width: float) -> Tensor:
    if not width:
        return (values < x).to(values)
    return torch.special.ndtr((x - values) / width)


def _estimate(samples: Tensor) -> Estimate:
    return Estimate(value=float(samples.mean()), stderr=float(samples.std() / math.sqrt(len(samples))), samples=samples)
