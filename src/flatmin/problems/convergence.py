r"""What the theory says of gradient norms: bounds from above and below, and closed forms on quadratics.

C is a Lipschitz constant of the gradient, D² bounds F(W₀) - min F, σ_g² the variance of a gradient's error, H the
second moment E‖U‖² of the perturbation, k the number of perturbations and T of steps.

Zhang, Li, Ju. *Noise Stability Optimization for Finding Flat Minima*. arXiv:2306.08553, Proposition 4.2, Theorems 4.3
and B.5, Lemma B.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatmin.checks import nonnegative, positive, whole


@dataclass(frozen=True)
class Setting:
    """The constants that the bounds are made of.

    Attributes:
        num_steps: T.
        num_perturbations: k.
        smoothness: C.
        distance: D.
        gradient_noise: σ_g.
        second_moment: H.

    Raises:
        ArgumentError: A constant is out of range.

    Example:
        >>> setting = Setting(num_steps=200)
        >>> round(setting.lower_bound, 5), round(setting.upper_bound, 5), round(setting.learning_rate, 5)
        (0.0125, 0.21, 0.1)
    """

    num_steps: int
    num_perturbations: int = 1
    smoothness: float = 1.0
    distance: float = 1.0
    gradient_noise: float = 1.0
    second_moment: float = 0.0

    def __post_init__(self) -> None:
        whole("num_steps", self.num_steps, minimum=1, hint="It is T.")
        whole("num_perturbations", self.num_perturbations, minimum=1, hint="It is k.")
        positive("smoothness", self.smoothness, hint="It is C, a Lipschitz constant of the gradient.")
        positive("distance", self.distance, hint="It is D, and D² bounds F(W₀) - min F.")
        nonnegative("gradient_noise", self.gradient_noise, hint="It is σ_g, the size of an error.")
        nonnegative("second_moment", self.second_moment, hint="It is H = E‖U‖².")

    @property
    def _variance(self) -> float:
        return self.gradient_noise**2 + self.smoothness**2 * self.second_moment

    @property
    def _shared(self) -> float:
        """C D² / (k T), which both bounds are roots of."""
        return self.smoothness * self.distance**2 / (self.num_perturbations * self.num_steps)

    @property
    def learning_rate(self) -> float:
        r"""The fixed rate of Proposition 4.2, :math:`\min\{C^{-1}, \sqrt{2kD^2/(C(\sigma_g^2+C^2H)T)}\}`."""
        steep = 1 / self.smoothness
        if not self._variance:
            return steep
        return min(steep, math.sqrt(2 * self._shared / self._variance) * self.num_perturbations / self.smoothness)

    @property
    def upper_bound(self) -> float:
        r"""What :math:`E\|\nabla F(W_t)\|^2`, t uniform, is at most at that rate (12).

        :math:`\sqrt{8CD^2(\sigma_g^2+C^2H)/(kT)} + 2CD^2/T`, with the constant that Lemma B.2 proves (derived here).
        """
        return math.sqrt(8 * self._shared * self._variance) + 2 * self._shared * self.num_perturbations

    @property
    def lower_bound(self) -> float:
        r"""What :math:`\min_t E\|\nabla F(W_t)\|^2` is at least on a worst function (14): D √(Cσ_g²/(32kT)).

        On the chain with a fixed rate that spends its budget it is :math:`\frac{D^2}{G}(1-\frac1{2T})^{2T}`, with
        :math:`G = 2T\eta` and :math:`\eta^2 = 8kD^2/(9C\sigma_g^2T)`: above this bound from T = 3 on (derived here).
        """
        return math.sqrt(self._shared / 32) * self.gradient_noise


def expected_square_gradients(
    learning_rates: Sequence[float],
    *,
    curvature: float = 1.0,
    distance: float = 1.0,
    noise_variance: float = 1.0,
    momentum: float = 0.0,
) -> list[float]:
    r"""Return :math:`E\|\nabla F(W_t)\|^2` on :math:`\frac C2\|W\|^2` with :math:`\|W_0\|^2 = 2D^2/C`, t from 0 to T.

    Lemma B.6 where μ = 0; with momentum, the recurrence of Theorem B.5: (W, M) is multiplied by
    :math:`[[1-\eta C, \mu], [-\eta C, \mu]]` and the error ξ moves both by -ηξ. So the second moments obey

    .. math:: S_{i+1} = X_i S_i X_i^\top + \eta_i^2 E\|\xi_i\|^2 [[1, 1], [1, 1]]

    Args:
        learning_rates: η₀ to η_{T-1}.
        curvature: C.
        distance: D.
        noise_variance: E‖ξ‖²: σ_g²/k, and C²H/k more for one-sided perturbations.
        momentum: μ.

    Raises:
        ArgumentError: A number is out of range.

    Example:
        >>> [round(value, 4) for value in expected_square_gradients([0.5, 0.5])]     # 2, then 2/4 + 1/4, ...
        [2.0, 0.75, 0.4375]
    """
    C = positive("curvature", curvature, hint="It is C, the eigenvalue of the Hessian.")
    mu = nonnegative("momentum", momentum, hint="It is the share of the last move that goes on.")
    nonnegative("noise_variance", noise_variance, hint="It is E‖ξ‖², of a gradient's error.")
    ww, wm, mm = 2 * distance**2 / C, 0.0, 0.0  # E‖W‖², E⟨W, M⟩, E‖M‖²
    found = [C**2 * ww]
    for eta in learning_rates:
        a, b, added = 1 - eta * C, -eta * C, eta**2 * noise_variance
        ww, wm, mm = (
            a * a * ww + 2 * a * mu * wm + mu * mu * mm + added,
            a * b * ww + (a + b) * mu * wm + mu * mu * mm + added,
            b * b * ww + 2 * b * mu * wm + mu * mu * mm + added,
        )
        found.append(C**2 * ww)
    return found
