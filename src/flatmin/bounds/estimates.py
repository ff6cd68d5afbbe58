r"""What the NSO paper reports beside its theorem: estimates in the shape of bounds, and no certificates.

The theorem (2.1) asks for the largest Hessian trace over all weights near and all data there may be, for constants that
grow with the dimension, and for a loss with a bound. What can be measured stands in for these: one trace at the trained
weights, the loss of guessing. The numbers compare runs with each other; they bound nothing.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, theorem 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flatmin.bounds.coins import check_delta
from flatmin.checks import nonnegative, positive, whole
from flatmin.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class BoundEstimate:
    """A number in the shape of a bound, which is not one.

    Attributes:
        value: The number, in units of the loss.
        complexity: What it adds to the empirical loss.
        sigma: The noise at which it is lowest, if it has one.
        name: What it is.

    Example:
        >>> BoundEstimate(value=0.5, complexity=0.3, sigma=0.01, name="leading term of equation (6)")
        BoundEstimate(0.5, leading term of equation (6); an estimate, not a certificate)
    """

    value: float
    complexity: float
    sigma: float | None
    name: str

    def __repr__(self) -> str:
        """Show the number, and what it is not."""
        return f"BoundEstimate({self.value:.4g}, {self.name}; an estimate, not a certificate)"


def equation_6(empirical: float, *, trace: float, distance: float, n: int, loss_bound: float) -> BoundEstimate:
    r"""The leading term of equation (6), :math:`\hat L + \sqrt{C \alpha r^2 / n}`, with ε = 0 and without ξ.

    Args:
        empirical: L̂(W), the mean training loss.
        trace: What stands in for α: a measured trace of the Hessian.
        distance: r, the Euclidean distance of the weights to where training started.
        n: Training examples.
        loss_bound: C.

    Example:
        >>> equation_6(0.2, trace=100.0, distance=2.0, n=10_000, loss_bound=1.0).value
        0.4
    """
    alpha, r, C = _checked(empirical, trace, distance, n, loss_bound)
    complexity = math.sqrt(C * alpha * r**2 / n)
    return BoundEstimate(
        value=empirical + complexity, complexity=complexity, sigma=None, name="leading term of equation (6)"
    )


def equation_28(*, trace: float, distance: float, n: int, loss_bound: float, beta: float = 0.5) -> float:
    r"""The σ of the paper's proof: where the two terms of (27) in r and α are least.

    .. math:: \sigma^2 = \frac{r}{1-\beta} \sqrt{\frac{C}{2 \alpha n}} \quad\Rightarrow\quad
        \frac{(1-\beta)\,\alpha}{2\beta}\sigma^2 + \frac{C r^2}{4 \beta (1-\beta) n \sigma^2}
        = \frac1\beta \sqrt{\frac{C \alpha r^2}{2 n}}

    A measured trace and distance choose it, for which no union pays: no σ to certify with, unless it is one of several
    that were fixed and are searched. That of :func:`hessian_estimate` is smaller, since there the noise costs what it
    raises the training loss by, and here only what the bound adds to that.

    Args:
        trace: What stands in for α.
        distance: r.
        n: Training examples.
        loss_bound: C.
        beta: β.

    Example:
        >>> round(equation_28(trace=100.0, distance=2.0, n=10_000, loss_bound=1.0), 4)
        0.0532
    """
    positive("trace", trace, hint="Without curvature every noise is free.")
    alpha, r, C = _checked(0.0, trace, distance, n, loss_bound)
    _check_beta(beta)
    return math.sqrt(r / (1 - beta) * math.sqrt(C / (2 * alpha * n)))


def hessian_estimate(
    empirical: float,
    *,
    trace: float,
    distance: float,
    n: int,
    loss_bound: float,
    delta: float = 0.05,
    beta: float = 0.5,
) -> BoundEstimate:
    r"""The linear bound of the noisy network with its loss replaced by the quadratic picture, at the best σ.

    .. math:: \frac1\beta \Big[\hat L + \sqrt{\frac{C r^2 \operatorname{tr}\hat H}{2 (1-\beta) n}}\Big]
        + \frac{C \ln(1/\delta)}{2 \beta (1-\beta) n}, \qquad
        \sigma^4 = \frac{C r^2}{2 (1-\beta)\, n \operatorname{tr}\hat H}

    with :math:`\hat L_Q \approx \hat L + \sigma^2 \operatorname{tr}\hat H / 2` in theorem A.1.

    Args:
        empirical: L̂(W), the mean training loss.
        trace: Measured trace of the Hessian.
        distance: r.
        n: Training examples.
        loss_bound: C.
        delta: δ.
        beta: β, fixed beforehand.

    Example:
        >>> estimate = hessian_estimate(0.05, trace=100.0, distance=2.0, n=10_000, loss_bound=1.0)
        >>> round(estimate.value, 4), round(estimate.sigma, 4)
        (0.5006, 0.0447)
    """
    alpha, r, C = _checked(empirical, trace, distance, n, loss_bound)
    check_delta(delta)
    _check_beta(beta)
    rise = math.sqrt(C * r**2 * alpha / (2 * (1 - beta) * n))
    value = (empirical + rise) / beta + C * math.log(1 / delta) / (2 * beta * (1 - beta) * n)
    sigma = (C * r**2 / (2 * (1 - beta) * n * alpha)) ** 0.25 if alpha > 0 else None
    return BoundEstimate(
        value=value, complexity=value - empirical, sigma=sigma, name="Hessian estimate at its best sigma"
    )


def authors_estimate(
    empirical: float, *, traces: Iterable[float], square_distances: Iterable[float], n: int, largest_loss: float
) -> BoundEstimate:
    r"""What the authors' code prints as a non-vacuous bound, for comparison with the paper's figure only.

    .. math:: \ell_{\max} \sqrt{\frac1n \sum_l \max_b \operatorname{tr} H_l^{(b)}\; r_l^2}

    summed over layers l, with the largest trace over mini-batches b, the loss of the worst mini-batch outside the root,
    and neither ε, β, δ nor ξ.

    Args:
        empirical: The mean training loss, which the code does not add; reported here as ``value``'s first part.
        traces: For each layer the largest trace over mini-batches.
        square_distances: For each layer r²: ‖W‖², ‖W - W₀‖² or the smaller of them, by experiment.
        n: Training examples.
        largest_loss: Loss of the worst mini-batch.

    Example:
        >>> authors_estimate(0.0, traces=[10.0, 20.0], square_distances=[1.0, 4.0], n=900, largest_loss=2.0).complexity
        0.6324555320336759
    """
    traces, squares = list(traces), list(square_distances)
    if len(traces) != len(squares):
        raise ArgumentError(f"there are {len(traces)} traces and {len(squares)} square_distances; one each a layer.")
    total = sum(max(0.0, t) * s for t, s in zip(traces, squares, strict=True))
    _checked(empirical, total, 1.0, n, 1.0)
    complexity = nonnegative("largest_loss", largest_loss, hint="It is a loss.") * math.sqrt(total / n)
    return BoundEstimate(
        value=empirical + complexity, complexity=complexity, sigma=None, name="as the authors' code computes it"
    )


def _check_beta(beta: float) -> None:
    if not 0 < beta < 1:
        raise ArgumentError(f"beta is {beta}, but it must lie between 0 and 1.")


def _checked(empirical: float, trace: float, distance: float, n: int, loss_bound: float) -> tuple[float, float, float]:
    nonnegative("empirical", empirical, hint="It is a mean loss.")
    whole("n", n, minimum=1, hint="It counts training examples.")
    return (
        nonnegative("trace", trace, hint="Where a measured trace is negative, noise costs nothing: take 0."),
        nonnegative("distance", distance, hint="It is the distance of the weights to where training started."),
        positive("loss_bound", loss_bound, hint="It is what the loss of no example exceeds."),
    )
