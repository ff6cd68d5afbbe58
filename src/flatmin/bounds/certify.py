"""Certify a trained model: the loss of noisy copies of it on data that nobody has seen, bounded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from flatmin.bounds.certificate import Certificate
from flatmin.bounds.coins import check_delta
from flatmin.bounds.examination import assumptions, check_size, examined, name_of
from flatmin.bounds.inequalities import (
    GRIDS,
    INEQUALITIES,
    Inequality,
    dziugaite_roy,
    dziugaite_roy_union,
    dziugaite_roy_variance,
)
from flatmin.bounds.monte_carlo import BoundedLoss, PosteriorRisk, posterior_risk
from flatmin.bounds.posterior import Sigma, kl_divergence, per_parameter
from flatmin.checks import choice, positive, whole
from flatmin.errors import ArgumentError, ArgumentTypeError

_MONTE_CARLO_SHARE = 0.2  # of delta; the draws are cheap, the examples are not
_DZIUGAITE_ROY = "dziugaite-roy"


def certify(
    model: nn.Module,
    *,
    prior: Mapping[str, Tensor],
    batches: Iterable[Any],
    sigma: Sigma | Sequence[Sigma],
    delta: float = 0.05,
    seed: int = 0,
    loss: str | BoundedLoss = "zero-one",
    bound: str = "seeger-maurer",
    prior_sigma: Sigma | None = None,
    num_passes: int = 5,
    prior_batches: Iterable[Any] | None = None,
) -> Certificate:
    r"""Bound the expected loss of noisy copies of a trained model on new data (PAC-Bayes).

    The posterior is N(W, σ²) around the model's weights, the prior N(W₀, σ_P²) around weights that the examples in
    ``batches`` had no part in: the initialisation, external pretraining, or a fit on other examples. With probability
    1 - δ over the examples and the draws

    .. math:: \mathrm{kl}(\hat L_Q \| L_Q) \le \frac{\mathrm{KL}(Q \| P) + \ln(2\sqrt n/\delta')}{n}

    and likewise for the other inequalities of :mod:`flatmin.bounds.inequalities`. L̂_Q is estimated from draws and
    replaced by its own upper bound. A fifth of δ pays for the draws, the rest for the inequality. Where several σ are
    tried, the best is returned, and each has an equal share of the former; of the latter too, unless they have one
    prior in common, for which the inequality holds whatever the posterior.

    NSO minimises the training part of this bound: its σ is the natural one to certify with.

    Args:
        model: The trained model; frozen parameters belong to prior and posterior as they are.
        prior: W₀ by parameter name, with the model's buffers: a copy of ``model.state_dict()`` from before training.
        batches: The n examples, without augmentation, each once: a ``DataLoader`` or a list. The posterior may have
            been trained on them; the prior may not. Draws are made anew for each batch, so smaller batches give a
            sharper estimate of L̂_Q.
        sigma: Standard deviation of the posterior, or a sequence of candidates fixed before looking at the data; each a
            number, or a mapping from patterns of parameter names.
        delta: One minus the confidence.
        seed: Seed of the draws.
        loss: ``"zero-one"`` (the classification error), ``"cross-entropy"`` (clamped at p = 1e-4 and scaled to [0, 1]),
            or a function of (output, targets) that returns one number in [0, 1] for each example.
        bound: Name of the inequality, chosen before looking at the data: a key of ``bounds.INEQUALITIES``, or
            ``"dziugaite-roy"``, which pays for all variances of the prior on a grid, to which it is rounded.
        prior_sigma: Standard deviation of the prior; fixed before looking at the data, except for ``"dziugaite-roy"``,
            where it is one number and may have been chosen by them. Default: that of the posterior.
        num_passes: Passes over the data for L̂_Q.
        prior_batches: The examples that the prior was fitted on, prepared in the same way but not augmented, to make
            sure that none is among ``batches``.

    Raises:
        ArgumentError: An argument is out of range; fewer than 8 examples; prior and model do not fit; buffers were
            trained; examples are repeated, augmented, or shared with the prior.
        ArgumentTypeError: An argument is of the wrong kind.
        NonFiniteError: Weights or losses are NaN or infinite.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 400)[:, None]
        >>> model = nn.Linear(1, 2)
        >>> prior = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        >>> _ = model.load_state_dict({"weight": torch.tensor([[-8.0], [8.0]]), "bias": torch.zeros(2)})
        >>> batches = list(zip(x.split(20), (x[:, 0] > 0).long().split(20)))
        >>> certify(model, prior=prior, batches=batches, sigma=1.0).risk < 0.5
        True
    """
    check_delta(delta)
    whole("num_passes", num_passes, minimum=1, hint="It counts passes over the data.")
    whole("seed", seed, minimum=0, hint="It is the seed of the draws.")
    choice("bound", bound, (*INEQUALITIES, _DZIUGAITE_ROY))
    candidates: list[Sigma] = list(sigma) if isinstance(sigma, Sequence) else [sigma]
    if not candidates:
        raise ArgumentError("sigma is an empty sequence, but at least one standard deviation is needed.")
    risk = examined(model, prior, batches, loss, prior_batches)
    posteriors = [per_parameter("sigma", candidate, risk.parameters) for candidate in candidates]
    num_priors = len(candidates) if prior_sigma is None and bound != _DZIUGAITE_ROY else 1
    paid, found = (1 - _MONTE_CARLO_SHARE) * delta / num_priors, list[_Tried]()
    for number, (candidate, posterior) in enumerate(zip(candidates, posteriors, strict=True)):
        wide, inequality, union = _inequality(bound, candidate if prior_sigma is None else prior_sigma)
        kl = kl_divergence(risk.parameters, prior, posterior, per_parameter("prior_sigma", wide, risk.parameters))
        spent = _MONTE_CARLO_SHARE * delta / len(candidates)
        empirical = posterior_risk(risk, posterior, num_passes=num_passes, delta=spent, seed=seed + number)
        check_size(empirical.num_examples)
        value = inequality(empirical.upper, kl, empirical.num_examples, paid)
        found.append(_Tried(value, candidate, wide, empirical, kl, union + math.log(num_priors)))
    best = min(found, key=lambda entry: entry.value)
    return Certificate(
        risk=best.value,
        loss=name_of(loss),
        bound=bound,
        empirical=best.empirical,
        kl=best.kl,
        n=best.empirical.num_examples,
        delta=delta,
        delta_bound=paid,
        num_searched=len(candidates),
        union=best.union,
        sigma=best.sigma,
        prior_sigma=best.prior_sigma,
        tried=tuple(entry.value for entry in found),
        single_draw=False,
        assumptions=assumptions(checked=prior_batches is not None, num_searched=len(candidates)),
    )


class _Tried(NamedTuple):
    value: float
    sigma: Sigma
    prior_sigma: Sigma
    empirical: PosteriorRisk
    kl: float
    union: float


def _inequality(bound: str, prior_sigma: Sigma) -> tuple[Sigma, Inequality, float]:
    """Return the prior's standard deviation as it is used, the inequality, and the nats its own search costs."""
    if bound != _DZIUGAITE_ROY:
        return prior_sigma, INEQUALITIES[bound], math.log(GRIDS.get(bound, 1))
    if isinstance(prior_sigma, Mapping):
        raise ArgumentTypeError(
            "the bound 'dziugaite-roy' is for a prior of one standard deviation, but there is one for each of "
            f"{', '.join(map(repr, prior_sigma))}. Pass one number as prior_sigma; sigma may still differ by name."
        )
    wide = positive("prior_sigma", prior_sigma, hint="It is the standard deviation of the prior.")
    variance = dziugaite_roy_variance(wide * wide)
    return math.sqrt(variance), partial(dziugaite_roy, prior_variance=variance), dziugaite_roy_union(variance)
