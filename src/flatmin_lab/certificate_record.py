"""Certificates with what they are compared with, as they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatmin.bounds import INEQUALITIES
from flatmin.bounds.certificate import confidence
from flatmin_lab.environment import environment
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from flatmin.bounds import Certificate


class CertificateRecord(Value):
    """A certificate with what it is compared with.

    Attributes:
        what: The recipe, or the run.
        seed: Of everything random.
        risk: The certified loss of networks drawn from the posterior.
        loss: Its name.
        confidence: With which each bound here holds, by itself.
        bound: The inequality.
        other_bounds: What the other inequalities give for the same numbers.
        empirical_risk: On the certified examples.
        monte_carlo_upper: What it is at most, the draws being finite.
        num_draws: Draws of the weights.
        kl: KL(Q‖P), in nats.
        n: The certified examples.
        sigma: Of the posterior.
        tried: The bound at each σ that was searched.
        delta_inequality: The part of δ that is left to the inequality, after every union.
        union: What the union over what was searched costs in the inequality, in nats.
        cross_entropy: The certified cross-entropy, clamped and scaled to [0, 1].
        single_draw: The certified error of one network drawn.
        test_error: Of the weights themselves on test data; an estimate.
        stochastic_test_error: Of networks drawn from the posterior there; an estimate.
        hold_out: The binomial bound.
        hold_out_of: Which network it is about, and on what.
        vacuous: Whether the certificate says nothing.
        paragraph: The certificate in words.
        remarks: What must be known to read the numbers together.
        environment: Machine and software.
    """

    what: str
    seed: int
    risk: float
    loss: str
    confidence: float
    bound: str
    other_bounds: dict[str, float]
    empirical_risk: float
    monte_carlo_upper: float
    num_draws: int
    kl: float
    n: int
    sigma: float | dict[str, float]
    tried: dict[str, float]
    delta_inequality: float
    union: float
    cross_entropy: float
    single_draw: float
    test_error: float
    stochastic_test_error: float
    hold_out: float
    hold_out_of: str
    vacuous: bool
    paragraph: str
    remarks: tuple[str, ...]
    environment: dict[str, str]


class CertificateSweep(Value):
    """Certificates of one recipe at several σ, which hold all at once.

    Attributes:
        what: The recipe.
        seed: Of everything random.
        confidence: With which all of the certificates hold at once, so that the lowest may be taken.
        sigmas: The σ of each, in the units of the recipe, ascending.
        records: The certificates, each of which has an equal share of δ.
    """

    what: str
    seed: int
    confidence: float
    sigmas: tuple[float, ...]
    records: tuple[CertificateRecord, ...]


def other_bounds(certificate: Certificate) -> dict[str, float]:
    """Return what the other inequalities give for the same numbers: for comparison, each valid alone."""
    c = certificate
    return {name: f(c.empirical.upper, c.kl, c.n, c.delta_bound) for name, f in INEQUALITIES.items()}


def as_record(
    certificate: Certificate,
    *,
    what: str,
    seed: int,
    cross_entropy: Certificate,
    single: Certificate,
    test_error: float,
    noisy: float,
    hold_out: tuple[float, str],
    tried: dict[str, float],
    remarks: tuple[str, ...] = (),
) -> CertificateRecord:
    """Return what is stored of a certificate.

    Args:
        certificate: Of the 0-1 error of the stochastic predictor.
        what: The recipe, or the run.
        seed: Of everything random.
        cross_entropy: The certificate of the clamped cross-entropy.
        single: That of one network drawn.
        test_error: Of the weights on test data.
        noisy: Of networks drawn on test data.
        hold_out: The binomial bound, and what it is about.
        tried: The bound at each σ that was searched.
        remarks: What must be known beside.
    """
    sigma: Any = certificate.sigma
    return CertificateRecord(
        what=what,
        seed=seed,
        risk=certificate.risk,
        loss=certificate.loss,
        confidence=1 - certificate.delta,
        bound=certificate.bound,
        other_bounds=other_bounds(certificate),
        empirical_risk=certificate.empirical.value,
        monte_carlo_upper=certificate.empirical.upper,
        num_draws=certificate.empirical.num_draws,
        kl=certificate.kl,
        n=certificate.n,
        sigma=sigma,
        tried=tried,
        delta_inequality=certificate.delta_bound,
        union=certificate.union,
        cross_entropy=cross_entropy.risk,
        single_draw=single.risk,
        test_error=test_error,
        stochastic_test_error=noisy,
        hold_out=hold_out[0],
        hold_out_of=hold_out[1],
        vacuous=certificate.vacuous,
        paragraph=" ".join(str(certificate).split()),
        remarks=(_each_alone(certificate.delta), *remarks),
        environment=environment(),
    )


def _each_alone(delta: float) -> str:
    return (
        f"Each bound holds with probability {confidence(delta)} by itself. Those of the stochastic predictor, its "
        "cross-entropy and the network drawn, and the hold-out bound hold all at once with probability "
        f"{confidence(min(1.0, 4 * delta))}. The inequality was fixed; what another gives is no second chance."
    )
