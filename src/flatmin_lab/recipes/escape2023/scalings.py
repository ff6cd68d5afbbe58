r"""Parameters as Theorems 1 and 2 scale them, and their bounds on the number of steps.

The theorems give orders. Here their constants are made of the smoothness β, so that nothing is tuned: in every formula
η stands for βη and ε₀ for ε₀/β.
"""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("RS", "SA")


@dataclass(frozen=True)
class Scaling:
    """Parameters of Algorithm 1 or 2.

    Attributes:
        eta: η, the step near the minima.
        descent: η′, that of gradient descent away from them.
        rho: ρ.
        threshold: ε₀.
    """

    eta: float
    descent: float
    rho: float
    threshold: float


def scaling(method: str, eps: float, delta: float, beta: float, dim: int) -> Scaling:
    r"""Return the parameters of Theorem 1 (RS) or 2 (SA).

    .. math:: \eta = \nu\delta\varepsilon/\beta,\quad \eta' = 1/\beta,\quad \rho = \nu\delta\sqrt\varepsilon,\quad
        \varepsilon_0 = \beta(\nu\delta)^{3/2}\varepsilon

    with ν = 1 for RS and ν = min(d, ε^(−1/3)) for SA.

    Example:
        >>> scaling("RS", 0.01, 0.25, 2.0, dim=10)
        Scaling(eta=0.00125, descent=0.5, rho=0.025, threshold=0.0025)
    """
    nu = 1.0 if method == "RS" else min(dim, eps ** (-1 / 3))
    return Scaling(nu * delta * eps / beta, 1 / beta, nu * delta * eps**0.5, beta * (nu * delta) ** 1.5 * eps)


def bound(method: str, eps: float, dim: int) -> float:
    """Return the order of the bound on the number of steps, δ and constants left out (Table 1).

    ε⁻³ for RS, and d⁻¹ε⁻² max(1, 1/(d³ε)) for SA.

    Example:
        >>> round(bound("RS", 0.1, 4)), round(bound("SA", 0.1, 4)), round(bound("SA", 0.01, 2))
        (1000, 25, 62500)
    """
    return eps**-3 if method == "RS" else max(1, 1 / (dim**3 * eps)) / (dim * eps**2)
