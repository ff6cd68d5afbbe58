"""The Frobenius norm of an operator from products alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flatmin.checks import positive, whole
from flatmin.curvature.counted import Counted
from flatmin.curvature.draws import block_width, columns
from flatmin.curvature.results import Estimate, Measured, plus_minus
from flatmin.noise import Gaussian, resolve_law
from flatmin.streams import Stream
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from flatmin.curvature.operators import LinearOperator
    from flatmin.noise import Law

_STREAM = int.from_bytes(b"frob")
_MIN_PROBES = 32  # before that a standard error is too uncertain itself to stop on
_FIXED_BUDGET, _TOLERANCE_BUDGET = 100, 10_000
_DEFLATION = 10


@dataclass(frozen=True, kw_only=True, repr=False)
class FrobeniusEstimate(Estimate, Measured):
    """The Frobenius norm of an operator, estimated; see :class:`Measured` for what it cost.

    Attributes:
        value: The estimate of ‖A‖_F, the root of ``square.value``.
        stderr: Its standard error by the delta method, ``square.stderr`` / (2 ``value``).
        square: The unbiased estimate of ‖A‖_F² = Σ λᵢ², with its samples.

    Example:
        >>> FrobeniusEstimate(value=5.0, stderr=0.3, square=Estimate(value=25.0, stderr=3.0), num_matvecs=100)
        FrobeniusEstimate(5.00 ± 0.30, 100 matvecs)
    """

    square: Estimate

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds the norm with probability ``confidence``: the roots of that of the square.

        Raises:
            ArgumentError: ``confidence`` is no probability.
        """
        low, high = self.square.interval(confidence)
        return math.sqrt(max(low, 0.0)), math.sqrt(max(high, 0.0))

    def __repr__(self) -> str:
        """Show value, error and cost in one line."""
        return f"FrobeniusEstimate({plus_minus(self.value, self.stderr)}, {self.cost()})"


def frobenius_norm(
    operator: LinearOperator,
    num_matvecs: int | None = None,
    *,
    rtol: float | None = None,
    deflation: int | None = None,
    law: str | Law = "rademacher",
    seed: int = 0,
) -> FrobeniusEstimate:
    r"""Estimate the Frobenius norm, the root of the sum of all squared eigenvalues of a symmetric operator.

    .. math:: \|A\|_F^2 = \|AQ\|_F^2 + \mathbb E\,\|A(I - QQ^\top)z\|^2

    for any Q with orthonormal columns and any z of mean zero and covariance I. Q is a basis of AΩ with k random vectors
    Ω, so that it holds what stands out in the spectrum; that part is exact, and independent z sample the rest. (Without
    Q one z has, by outliers alone, a relative variance of up to 2.) The square is unbiased. The root is low by
    stderr²/(2 value), far below its error.

    Memory: k vectors of d coordinates, and four blocks of at most 16 (or as many as fit into 2²⁶ numbers).

    For a model's Hessian at a minimum, σ⁴‖H‖_F²/2 is the variance of the loss under antithetic noise of deviation σ.

    Args:
        operator: Anything with ``shape`` (d, d), ``dtype``, ``device`` and ``@``; need not be symmetric.
        num_matvecs: Products to spend, at least 2; with a tolerance, the most. Default: 100, or 10,000 with ``rtol``.
        rtol: Standard error of the norm to reach, relative to the norm.
        deflation: k. Costs 2k products and as many vectors of d coordinates; 0 is plain sampling. Default: 10, or a
            quarter of ``num_matvecs`` if that is less.
        law: Law of z, by name or as an object; ``"rademacher"`` or ``"gaussian"``.
        seed: Seed of the vectors.

    Returns:
        The norm, with its unbiased square. ``converged`` is False if the budget ended before the tolerance was met.

    Raises:
        ArgumentError: The operator is not square, or another argument is out of range.
        ArgumentTypeError: The operator is none, or another argument is of the wrong kind.
        NonFiniteError: A product is not finite.

    Example:
        >>> A = torch.diag(1 / torch.arange(1.0, 100.0))
        >>> estimate = frobenius_norm(A, 60)
        >>> abs(estimate.value - float(A.norm())) < 4 * estimate.stderr
        True
    """
    A = Counted(operator)
    tolerance = None if rtol is None else positive("rtol", rtol, hint="It is the relative standard error to reach.")
    asked = num_matvecs if num_matvecs is not None else _FIXED_BUDGET if tolerance is None else _TOLERANCE_BUDGET
    budget = whole("num_matvecs", asked, minimum=2, hint="It counts products; one alone has no standard error.")
    most = min(A.d, (budget - 2) // 2)
    k = min(_DEFLATION, budget // 4, A.d) if deflation is None else deflation
    hint = f"It is the number of vectors set apart; they cost two products each, so at most {most} fit here."
    if whole("deflation", k, minimum=0, hint=hint) > most:
        k = most
    noise = resolve_law(law)
    stream = Stream(whole("seed", seed, minimum=0, hint="It is the seed of the random vectors.")).child(_STREAM)

    with A.session():
        basis, known = _outliers(A, k, stream.child(0))
        samples: list[float] = []
        for block in _samples(A, basis, budget - 2 * k, stream.child(1), noise):
            samples += block
            if tolerance is not None and len(samples) >= _MIN_PROBES and _reached(known, samples, tolerance):
                break
    square = _square(known, samples)
    value, stderr = _root(square)
    reached = tolerance is None or (len(samples) >= min(_MIN_PROBES, budget) and _reached(known, samples, tolerance))
    return FrobeniusEstimate(value=value, stderr=stderr, square=square, seed=seed, converged=reached, **A.cost())


def _outliers(A: Counted, k: int, stream: Stream) -> tuple[Tensor, float]:
    """Return an orthonormal basis Q of the range of AΩ, shape (d, k), and ‖AQ‖_F²."""
    start = columns(A, stream, 0, k, Gaussian())
    if k == 0:
        return start, 0.0
    basis, _ = torch.linalg.qr(A.products(start).to(start.dtype))
    return basis, float(_squares(A.products(basis)).sum())


def _samples(A: Counted, basis: Tensor, count: int, stream: Stream, law: Law) -> Iterator[list[float]]:
    width = block_width(A.d)
    for start in range(0, count, width):
        probes = columns(A, stream, start, min(width, count - start), law)
        if basis.shape[1]:
            probes.addmm_(basis, basis.T @ probes, alpha=-1.0)
        yield _squares(A.products(probes)).tolist()


def _squares(block: Tensor) -> Tensor:
    return torch.linalg.vector_norm(block, dim=0, dtype=accumulation_dtype(block.device)).square()


def _square(known: float, samples: list[float]) -> Estimate:
    drawn = torch.tensor(samples, dtype=torch.float64) + known
    return Estimate(value=float(drawn.mean()), stderr=float(drawn.std()) / math.sqrt(len(samples)), samples=drawn)


def _root(square: Estimate) -> tuple[float, float]:
    value = math.sqrt(square.value)
    return value, square.stderr / (2 * value) if value else 0.0


def _reached(known: float, samples: list[float], rtol: float) -> bool:
    value, stderr = _root(_square(known, samples))
    return stderr <= rtol * value
