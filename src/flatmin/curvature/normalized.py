"""The normalized trace: the mean eigenvalue."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flatmin.curvature.operators import dimension
from flatmin.curvature.trace import trace

if TYPE_CHECKING:
    from flatmin.curvature.operators import LinearOperator
    from flatmin.curvature.results import TraceEstimate


def normalized_trace(
    operator: LinearOperator, num_matvecs: int | None = None, *, atol: float | None = None, **options: Any
) -> TraceEstimate:
    r"""Estimate the trace divided by the number of parameters, which is the mean eigenvalue.

    .. math::
        \overline{\operatorname{tr}}(A) = \frac{\operatorname{tr} A}{\operatorname{tr} I_d} = \frac1d \sum_i \lambda_i

    It is what Ahn, Jadbabaie and Sra (2024, section 2) measure flatness by, and compares models, or layers, of
    different size. For HAWQ-v2's sensitivity (Dong et al. 2020), the mean eigenvalue of every layer's own block, take
    ``layerwise(normalized_trace, H)``.

    Args:
        operator: Anything with ``shape`` (d, d), ``dtype``, ``device`` and ``@``.
        num_matvecs: See :func:`trace`.
        atol: Standard error to reach, in units of the mean eigenvalue.
        **options: Further arguments of :func:`trace`.

    Returns:
        The estimate of :func:`trace` with value, error and samples divided by d.

    Raises:
        ArgumentError: The operator is not square, or another argument is out of range.
        ArgumentTypeError: The operator is none, or another argument is of the wrong kind.
        NonFiniteError: A product is not finite.

    Example:
        >>> import torch
        >>> normalized_trace(torch.diag(torch.tensor([1.0, 2.0, 6.0])), 3)
        TraceEstimate(3 ± 0, 3 matvecs)
    """
    d = dimension(operator)
    return scaled(trace(operator, num_matvecs, atol=None if atol is None else atol * d, **options), 1 / d)


def scaled(estimate: TraceEstimate, factor: float) -> TraceEstimate:
    """Return ``estimate`` with value, error and samples times ``factor`` > 0."""
    samples = None if estimate.samples is None else estimate.samples * factor
    return replace(estimate, value=estimate.value * factor, stderr=estimate.stderr * factor, samples=samples)
