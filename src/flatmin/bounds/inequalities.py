r"""PAC-Bayes inequalities as functions of four numbers.

All of them bound L_Q, the expected loss of a network drawn from the posterior Q, on data it was not trained on. They
hold with probability at least 1 - δ over the n independent examples, for losses in [0, 1] and a prior P that does not
depend on these examples:

- risk: L̂_Q, the mean loss over the examples of networks drawn from Q;
- kl: KL(Q‖P), in nats;
- n: the number of examples;
- delta: δ.

The numbers returned may exceed 1, where they say nothing: the bound is vacuous there. Where a number is found by
bisection, the upper end of the last interval is returned.

- Maurer, A. (2004). A note on the PAC Bayesian theorem. arXiv:cs/0411099.
- McAllester, D. (1999). PAC-Bayesian model averaging; (2013). A PAC-Bayesian tutorial with a dropout bound.
- Pérez-Ortiz, M. et al. (2021). Tighter risk certificates for neural networks. JMLR 22.
- Thiemann, N. et al. (2017). A strongly quasiconvex PAC-Bayesian bound.
- Catoni, O. (2007). PAC-Bayesian supervised classification.
- Dziugaite, G. and Roy, D. (2017). Computing nonvacuous generalization bounds for deep (stochastic) neural networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flatmin.bounds.coins import check_delta, kl_inverse, probability
from flatmin.checks import nonnegative, positive, whole
from flatmin.errors import ArgumentError

Inequality = Callable[[float, float, int, float], float]
"""``bound(risk, kl, n, delta)``."""

BETAS = tuple(j / 20 for j in range(1, 20))
"""Where the linear bound is tried: 0.05, 0.1, ..., 0.95."""
LAMBDAS = tuple(math.exp(j / 4) for j in range(-12, 9))
"""Where Catoni's bound is tried."""


def seeger_maurer(risk: float, kl: float, n: int, delta: float) -> float:
    r"""The kl-inverse bound (Seeger 2002; Maurer 2004), the tightest here in most cases; n at least 8.

    .. math:: \mathrm{kl}(\hat L_Q \| L_Q) \le \frac{\mathrm{KL} + \ln(2\sqrt n/\delta)}{n}

    Example:
        >>> round(seeger_maurer(0.05, 500, 10_000, 0.05), 6)
        0.150122
    """
    return kl_inverse(risk, _complexity(risk, kl, n, delta) / n)


def mcallester(risk: float, kl: float, n: int, delta: float) -> float:
    r"""McAllester's bound in Maurer's form, :math:`\hat L_Q + \sqrt{(\mathrm{KL} + \ln(2\sqrt n/\delta)) / 2n}`.

    Example:
        >>> round(mcallester(0.05, 500, 10_000, 0.05), 6)
        0.20942
    """
    return risk + math.sqrt(_complexity(risk, kl, n, delta) / (2 * n))


def quadratic(risk: float, kl: float, n: int, delta: float) -> float:
    r"""The quadratic bound of Pérez-Ortiz et al., :math:`(\sqrt{\hat L_Q + \kappa} + \sqrt\kappa)^2`.

    with :math:`\kappa = (\mathrm{KL} + \ln(2\sqrt n/\delta)) / 2n`.

    Example:
        >>> round(quadratic(0.05, 500, 10_000, 0.05), 6)
        0.188388
    """
    kappa = _complexity(risk, kl, n, delta) / (2 * n)
    return (math.sqrt(risk + kappa) + math.sqrt(kappa)) ** 2


def lambda_bound(risk: float, kl: float, n: int, delta: float) -> float:
    r"""The λ-bound (Thiemann et al. 2017) at its best λ; it holds for all λ in (0, 2) at once.

    .. math:: \frac{\hat L_Q}{1 - \lambda/2} + \frac{\mathrm{KL} + \ln(2\sqrt n/\delta)}{n \lambda (1 - \lambda/2)},
        \qquad \lambda = \frac{2}{\sqrt{2 n \hat L_Q / (\mathrm{KL} + \ln(2\sqrt n/\delta)) + 1} + 1}

    Example:
        >>> abs(lambda_bound(0.05, 500, 10_000, 0.05) - quadratic(0.05, 500, 10_000, 0.05)) < 1e-12
        True
    """
    complexity = _complexity(risk, kl, n, delta)
    factor = 2 / (math.sqrt(2 * n * risk / complexity + 1) + 1)
    return risk / (1 - factor / 2) + complexity / (n * factor * (1 - factor / 2))


def linear(risk: float, kl: float, n: int, delta: float, betas: Sequence[float] = BETAS) -> float:
    r"""The linear bound (McAllester 2013, theorem 2; theorem A.1 of the NSO paper) at the best β of a fixed grid.

    .. math:: \frac{\hat L_Q}{\beta} + \frac{\mathrm{KL} + \ln(1/\delta)}{2 \beta (1 - \beta) n}

    β must be fixed before the data are seen, so that each point of the grid gets δ / len(betas).

    Raises:
        ArgumentError: ``betas`` is empty or not all between 0 and 1, or see the module.

    Example:
        >>> round(linear(0.05, 500, 10_000, 0.05), 6)
        0.188119
    """
    _check(risk, kl, n, delta)
    _check_grid("betas", betas, below=1.0)
    term = kl + math.log(len(betas) / delta)
    return min(risk / beta + term / (2 * beta * (1 - beta) * n) for beta in betas)


def catoni(risk: float, kl: float, n: int, delta: float, lambdas: Sequence[float] = LAMBDAS) -> float:
    r"""Catoni's bound at the best λ of a fixed grid, each point of which gets δ / len(lambdas).

    .. math:: \frac{1 - \exp(-\lambda \hat L_Q - (\mathrm{KL} + \ln(1/\delta)) / n)}{1 - e^{-\lambda}}

    Raises:
        ArgumentError: ``lambdas`` is empty or not all above 0, or see the module.

    Example:
        >>> round(catoni(0.05, 500, 10_000, 0.05), 6)
        0.149998
    """
    _check(risk, kl, n, delta)
    _check_grid("lambdas", lambdas, below=math.inf)
    term = (kl + math.log(len(lambdas) / delta)) / n
    return min(math.expm1(-factor * risk - term) / math.expm1(-factor) for factor in lambdas)


def dziugaite_roy(
    risk: float, kl: float, n: int, delta: float, *, prior_variance: float, c: float = 0.1, b: float = 100.0
) -> float:
    r"""The bound of Dziugaite and Roy (2017), whose prior variance may be chosen after seeing the data.

    .. math:: \mathrm{kl}(\hat L_Q \| L_Q) \le
        \frac{\mathrm{KL} + 2 \ln(b \ln(c/\sigma_P^2)) + \ln(\pi^2 n/6\delta)}{n - 1}

    for :math:`\sigma_P^2 = c\,e^{-j/b}`, j = 1, 2, ...: a union over all of them, j with weight 6/(π j)².

    Args:
        risk: See the module.
        kl: See the module, with the prior that is used.
        n: See the module.
        delta: See the module.
        prior_variance: σ_P²; below c, and a member of the grid: :func:`dziugaite_roy_variance` rounds to one.
        c: The largest variance.
        b: Members of the grid a factor of e.

    Raises:
        ArgumentError: ``prior_variance`` is no member of the grid, or see the module.

    Example:
        >>> variance = dziugaite_roy_variance(0.01)
        >>> round(dziugaite_roy(0.05, 500, 10_000, 0.05, prior_variance=variance), 6)
        0.152068
    """
    _check(risk, kl, n, delta)
    union = dziugaite_roy_union(prior_variance, c=c, b=b)
    return kl_inverse(risk, (kl + union + math.log(n / delta)) / (n - 1))


def dziugaite_roy_union(prior_variance: float, *, c: float = 0.1, b: float = 100.0) -> float:
    r"""Return what the choice of the prior's variance costs: :math:`\ln(\pi^2 j^2 / 6)` nats for the j-th of the grid.

    Raises:
        ArgumentError: ``prior_variance`` is no member of the grid.

    Example:
        >>> round(dziugaite_roy_union(0.1 * math.exp(-1)), 6)               # j = 100
        9.708041
    """
    variance = positive("prior_variance", prior_variance, hint="It is the variance of the prior.")
    if variance >= c:
        raise ArgumentError(f"prior_variance is {prior_variance}, but it must lie between 0 and c = {c}.")
    j = b * (math.log(c) - math.log(variance))
    if round(j) < 1 or abs(j - round(j)) > 1e-6 * max(1.0, j):
        raise ArgumentError(
            f"prior_variance is {prior_variance}, which is no member of the grid c exp(-j/b), j = 1, 2, ...: the union "
            "does not cover it. Round it by dziugaite_roy_variance before KL is computed."
        )
    return math.log(math.pi**2 * round(j) ** 2 / 6)


def dziugaite_roy_variance(variance: float, *, c: float = 0.1, b: float = 100.0) -> float:
    """Return the member of Dziugaite and Roy's grid nearest to ``variance``.

    Example:
        >>> abs(dziugaite_roy_variance(0.01) - 0.01) < 1e-4
        True
    """
    positive("variance", variance, hint="It is the variance of the prior.")
    return c * math.exp(-max(1, round(b * (math.log(c) - math.log(variance)))) / b)


INEQUALITIES: dict[str, Inequality] = {
    "seeger-maurer": seeger_maurer,
    "mcallester": mcallester,
    "quadratic": quadratic,
    "lambda": lambda_bound,
    "linear": linear,
    "catoni": catoni,
}
"""The bounds that need nothing but the four numbers, by name."""

GRIDS: dict[str, int] = {"linear": len(BETAS), "catoni": len(LAMBDAS)}
"""How many statements share delta inside a bound that searches a grid of its own."""


def _check(risk: float, kl: float, n: int, delta: float) -> None:
    probability("risk", risk)
    nonnegative("kl", kl, hint="It is a relative entropy, in nats.")
    whole("n", n, minimum=8, hint="It counts the examples of the bound; ln(2√n/δ) is proved for 8 and more.")
    check_delta(delta)


def _check_grid(name: str, grid: Sequence[float], *, below: float) -> None:
    if not grid or not all(0 < point < below for point in grid):
        raise ArgumentError(
            f"{name} is {grid!r}, but one or more numbers between 0 and {below:g} are needed: beyond, the inequality "
            "does not hold."
        )


def _complexity(risk: float, kl: float, n: int, delta: float) -> float:
    _check(risk, kl, n, delta)
    return kl + math.log(2 * math.sqrt(n) / delta)
