"""Certificates: what flatness buys, as a number that holds."""

from flatmin.bounds.certificate import Certificate
from flatmin.bounds.certify import certify
from flatmin.bounds.coins import binary_kl, binomial, kl_inverse
from flatmin.bounds.estimates import BoundEstimate, authors_estimate, equation_6, equation_28, hessian_estimate
from flatmin.bounds.inequalities import (
    INEQUALITIES,
    catoni,
    dziugaite_roy,
    dziugaite_roy_union,
    dziugaite_roy_variance,
    lambda_bound,
    linear,
    mcallester,
    quadratic,
    seeger_maurer,
)
from flatmin.bounds.monte_carlo import PosteriorRisk, clamped_cross_entropy, posterior_risk, zero_one
from flatmin.bounds.posterior import kl_divergence
from flatmin.bounds.single_draw import certify_draw

__all__ = [
    "INEQUALITIES",
    "BoundEstimate",
    "Certificate",
    "PosteriorRisk",
    "authors_estimate",
    "binary_kl",
    "binomial",
    "catoni",
    "certify",
    "certify_draw",
    "clamped_cross_entropy",
    "dziugaite_roy",
    "dziugaite_roy_union",
    "dziugaite_roy_variance",
    "equation_6",
    "equation_28",
    "hessian_estimate",
    "kl_divergence",
    "kl_inverse",
    "lambda_bound",
    "linear",
    "mcallester",
    "posterior_risk",
    "quadratic",
    "seeger_maurer",
    "zero_one",
]
