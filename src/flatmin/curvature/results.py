"""What estimators return: a value with its error and its cost, frozen.

A number that came out of random draws, without its standard error, is a number that nobody can use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.layout import Layout


def plus_minus(value: float, stderr: float) -> str:
    """Write a value and its standard error with two digits of the error, and of the value no more than that.

    Example:
        >>> plus_minus(10.7912, 0.1234), plus_minus(123456.0, 789.0), plus_minus(2.5, 0.0), plus_minus(2.5, math.nan)
        ('10.79 ± 0.12', '123460 ± 790', '2.5 ± 0', '2.5 ± nan')
    """
    if not (math.isfinite(stderr) and math.isfinite(value) and stderr > 0):
        return f"{value:.6g} ± {stderr:.2g}"
    last = 1 - math.floor(math.log10(stderr))  # the decimal that holds the error's second digit
    if abs(value) >= 1e7 or stderr < 1e-5:
        digits = max(0, last + math.floor(math.log10(abs(value)))) if value else 1
        return f"{value:.{digits}e} ± {stderr:.1e}"
    return f"{round(value, last):.{max(last, 0)}f} ± {round(stderr, last):.{max(last, 0)}f}"


def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t law by its Cornish-Fisher expansion.

    Within 0.1 % of the truth from 6 degrees of freedom on, for probabilities up to 0.995 (Abramowitz and Stegun,
    26.7.5).
    """
    x = NormalDist().inv_cdf(probability)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / degrees**power for power, term in enumerate(terms, start=1))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A Monte-Carlo mean with its standard error.

    Attributes:
        value: The estimate, the mean of independent draws.
        stderr: Its standard error, s / √n; NaN for a single draw.
        samples: The draws themselves, shape (n,), if they were kept.
    """

    value: float
    stderr: float
    samples: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def relative_stderr(self) -> float:
        """The standard error as a share of the value's magnitude; infinite at value zero."""
        return self.stderr / abs(self.value) if self.value else math.inf

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds the truth with probability ``confidence``.

        Student's law with n - 1 degrees of freedom where the draws were kept, the normal law where not.

        Args:
            confidence: Between 0 and 1.

        Raises:
            ArgumentError: ``confidence`` is no probability.
        """
        if not 0 < confidence < 1:
            raise ArgumentError(f"confidence is {confidence}, but it must lie between 0 and 1, such as 0.95.")
        upper = (1 + confidence) / 2
        n = 0 if self.samples is None else self.samples.numel()
        quantile = student_quantile(upper, n - 1) if n > 1 else NormalDist().inv_cdf(upper)
        return self.value - quantile * self.stderr, self.value + quantile * self.stderr


@dataclass(frozen=True, kw_only=True, repr=False)
class Measured:
    """What every result of an estimator tells of how it came about.

    Attributes:
        num_matvecs: Products with the operator that were spent, or, for a live trace and for a perturbation gap, the
            pairs of points that stand in for them.
        gradients: What was spent in all, in gradients of all the data (see :class:`RiskOperator`); None for operators
            that do not count, such as matrices.
        seed: Seed of the random draws, if there were any.
        route: How products were computed, in a few words.
        converged: False where a tolerance was asked for and the budget ended first.
    """

    num_matvecs: int
    gradients: float | None = None
    seed: int | None = None
    route: str = ""
    converged: bool = True

    def cost(self) -> str:
        """Say what was spent and whether it sufficed."""
        spent = "" if self.gradients is None else f" = {self.gradients:.3g} gradients"
        return f"{self.num_matvecs} matvecs{spent}" + ("" if self.converged else ", not converged")


@dataclass(frozen=True, kw_only=True, repr=False)
class TraceEstimate(Estimate, Measured):
    """The trace of an operator, estimated; see :class:`Measured` for what it cost.

    Attributes:
        value: The estimate.
        stderr: Its standard error.
        samples: The draws whose mean it is, shape (n,), if they were kept.
        method: How it was estimated.
        reason: Why that way was chosen, where ``method="auto"`` chose.
        eigenvalues: The eigenvalues of largest magnitude, where they were found on the way.

    Example:
        >>> TraceEstimate(value=10.7912, stderr=0.1234, num_matvecs=100)
        TraceEstimate(10.79 ± 0.12, 100 matvecs)
    """

    method: str = ""
    reason: str = ""
    eigenvalues: EigenPairs | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Show value, error and cost in one line."""
        return f"TraceEstimate({plus_minus(self.value, self.stderr)}, {self.cost()})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EigenPairs(Measured):
    """Eigenvalues of a symmetric operator with their eigenvectors and errors; see :class:`Measured` for the cost.

    Attributes:
        values: Eigenvalues in the order that was asked for, shape (k,), float64 (float32 on devices without it).
        vectors: Unit eigenvectors as columns, shape (d, k).
        residuals: ‖A v - λ v‖ of each pair, shape (k,). An eigenvalue of A lies within this distance of each value.
        errors: Estimated distance of each value from an eigenvalue, shape (k,), of the order of the residual's square
            where the value is isolated; see :class:`~flatmin.curvature.ritz.Ritz`.
        layout: What splits a vector into named tensors, where the operator has one.

    Example:
        >>> import torch
        >>> EigenPairs(values=torch.tensor([3.0, -1.0]), vectors=torch.eye(2), residuals=torch.zeros(2),
        ...            errors=torch.zeros(2), num_matvecs=2)
        EigenPairs([3 ± 0, -1 ± 0], 2 matvecs)
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    errors: Tensor
    layout: Layout | None = None

    def vector(self, index: int) -> dict[str, Tensor]:
        """Return an eigenvector as named tensors, views of its column.

        Raises:
            ArgumentError: The operator knows no names, as matrices do not.
        """
        if self.layout is None:
            raise ArgumentError(
                "the operator has no named parameters, so its eigenvectors have no names either. vectors[:, index] is "
                "the flat vector."
            )
        return self.layout.split(self.vectors[:, index])

    @property
    def trees(self) -> list[dict[str, Tensor]]:
        """All eigenvectors as named tensors; see :meth:`vector`."""
        return [self.vector(index) for index in range(len(self))]

    def __len__(self) -> int:
        """Return k."""
        return len(self.values)

    def __repr__(self) -> str:
        """Show values, errors and cost in one line."""
        pairs = zip(self.values.tolist(), self.errors.tolist(), strict=True)
        values = ", ".join(f"{value:.5g} ± {error:.1g}" for value, error in pairs)
        return f"EigenPairs([{values}], {self.cost()})"
