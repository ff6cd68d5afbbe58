r"""The sigma that a PAC-Bayes bound asks for.

- Zhang, Li, Ju. Noise Stability Optimization for Finding Flat Minima. arXiv:2306.08553, equations (27) and (28).
"""

from __future__ import annotations

import math

from flatmin.checks import nonnegative, positive, whole
from flatmin.errors import ArgumentError


def optimal_sigma(distance: float, trace: float, num_examples: int, *, loss_bound: float, beta: float = 0.5) -> float:
    r"""Return the sigma at which the paper's generalisation bound for the weights themselves is lowest.

    .. math:: \sigma^2 = \frac{r}{1 - \beta} \sqrt{\frac{C}{2 \alpha n}}

    (equation (28)). It minimises the two terms of equation (27) that hold r and α,

    .. math:: \frac{(1 - \beta)\,\alpha}{2 \beta} \sigma^2 + \frac{C r^2}{4 \beta (1 - \beta) n\, \sigma^2},

    at which they are equal and add up to :math:`\frac1\beta \sqrt{C \alpha r^2 / (2 n)}`. There the trace costs only
    :math:`1/\beta - 1`, since noise raises the loss on new data, which is what is bounded, nearly as it raises that on
    the training data. Whoever bounds the loss of the *noisy* network pays :math:`1/\beta`, and the best sigma is
    smaller by the factor :math:`(1 - \beta)^{1/4}`: :math:`\sigma^4 = C r^2 / (2 (1 - \beta) n \alpha)`.

    The theorem asks for the largest trace over all weights and data and for a beta fixed beforehand. With a measured
    trace this is a reasonable size for the noise, and no certificate.

    Args:
        distance: r, the Euclidean distance of the weights to where training started.
        trace: α, the trace of the loss's Hessian.
        num_examples: n, the number of training examples.
        loss_bound: C, which the loss of no example exceeds: 1 for the classification error; cross-entropy has no bound,
            and ln(number of classes), the loss of guessing, is a usual stand-in.
        beta: Between 0 and 1. The default makes the price of distance, :math:`1 / (\beta (1 - \beta))`, lowest.

    Raises:
        ArgumentError: A value that cannot work.
        ArgumentTypeError: One is no number.

    Example:
        >>> round(optimal_sigma(distance=3.0, trace=4500.0, num_examples=1000, loss_bound=1.0), 4)
        0.0447
    """
    r = nonnegative("distance", distance, hint="It is the distance of the weights to where training started.")
    alpha = positive("trace", trace, hint="At a trace that is not positive no noise is too much.")
    n = whole("num_examples", num_examples, minimum=1, hint="It is the number of training examples.")
    C = positive("loss_bound", loss_bound, hint="It is what the loss of no example exceeds.")
    return math.sqrt(r / (1 - _share(beta)) * math.sqrt(C / (2 * alpha * n)))


def _share(beta: float) -> float:
    hint = "It is beta of the PAC-Bayes bound, such as 0.5."
    if positive("beta", beta, hint=hint) >= 1:
        raise ArgumentError(f"beta is {beta}, but it must lie between 0 and 1. {hint}")
    return float(beta)
