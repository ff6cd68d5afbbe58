"""Certify a trained model: the loss of noisy copies of it on data that nobody has seen, bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatmin.bounds.certificate import Certificate
from flatmin.bounds.inequalities import INEQUALITIES, check_delta, kl_inverse
from flatmin.bounds.monte_carlo import LOSSES, BoundedLoss, PosteriorRisk, batch_mean, drawing, posterior_risk
from flatmin.bounds.posterior import Sigma, check_buffers, check_prior, kl_divergence, per_parameter
from flatmin.bounds.samples import check_disjoint, check_independent
from flatmin.checks import choice, whole
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

_MONTE_CARLO_SHARE = 0.2  # of delta; the draws are cheap, the examples are not
_SMALLEST = 8
_STREAM = int.from_bytes(b"draw")


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
    replaced by its own upper bound. A fifth of δ pays for the draws, the rest for the inequality; where several σ are
    tried, each gets an equal share of both, and the best is returned.

    NSO minimises the training part of this bound: its σ is the natural one to certify with.

    Args:
        model: The trained model; frozen parameters belong to prior and posterior as they are.
        prior: W₀ by parameter name, with the model's buffers: the ``state_dict()`` of the model before training.
        batches: The n examples, without augmentation, each once: a ``DataLoader`` or a list. The posterior may have
            been trained on them; the prior may not. Draws are made anew for each batch, so smaller batches give a
            sharper estimate of L̂_Q.
        sigma: Standard deviation of the posterior, or a sequence of candidates fixed before looking at the data; each a
            number, or a mapping from patterns of parameter names.
        delta: One minus the confidence.
        seed: Seed of the draws.
        loss: ``"zero-one"`` (the classification error), ``"cross-entropy"`` (clamped at p = 1e-4 and scaled to [0, 1]),
            or a function of (output, targets) that returns one number in [0, 1] for each example.
        bound: Name of the inequality, chosen before looking at the data.
        prior_sigma: Standard deviation of the prior; fixed before looking at the data. Default: that of the posterior.
        num_passes: Passes over the data for L̂_Q.
        prior_batches: The examples that the prior was fitted on, to make sure that none is among ``batches``.

    Raises:
        ArgumentError: An argument is out of range; fewer than 8 examples; prior and model do not fit; buffers were
            trained; examples are repeated, augmented, or shared with the prior.
        ArgumentTypeError: An argument is of the wrong kind.
        NonFiniteError: Weights or losses are NaN or infinite.

    Example:
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
    inequality = INEQUALITIES[choice("bound", bound, INEQUALITIES)]
    candidates: list[Sigma] = list(sigma) if isinstance(sigma, Sequence) else [sigma]
    if not candidates:
        raise ArgumentError("sigma is an empty sequence, but at least one standard deviation is needed.")
    risk = _examined(model, prior, batches, loss, prior_batches)
    share = delta / len(candidates)
    found: list[tuple[float, Sigma, PosteriorRisk, float]] = []
    for number, candidate in enumerate(candidates):
        posterior = per_parameter("sigma", candidate, risk.parameters)
        wide = posterior if prior_sigma is None else per_parameter("prior_sigma", prior_sigma, risk.parameters)
        kl = kl_divergence(risk.parameters, prior, posterior, wide)
        empirical = posterior_risk(
            risk, posterior, num_passes=num_passes, delta=_MONTE_CARLO_SHARE * share, seed=seed + number
        )
        _check_size(empirical.num_examples)
        value = inequality(empirical.upper, kl, empirical.num_examples, (1 - _MONTE_CARLO_SHARE) * share)
        found.append((value, candidate, empirical, kl))
    value, best, empirical, kl = min(found, key=lambda entry: entry[0])
    return Certificate(
        risk=value,
        loss=_name_of(loss),
        bound=bound,
        empirical=empirical,
        kl=kl,
        n=empirical.num_examples,
        delta=delta,
        delta_bound=(1 - _MONTE_CARLO_SHARE) * share,
        num_searched=len(candidates),
        sigma=best,
        prior_sigma=best if prior_sigma is None else prior_sigma,
        tried=tuple(entry[0] for entry in found),
        single_draw=False,
        assumptions=_assumptions(prior_batches is not None),
    )


def certify_draw(
    model: nn.Module,
    *,
    prior: Mapping[str, Tensor],
    batches: Iterable[Any],
    sigma: Sigma,
    delta: float = 0.05,
    seed: int = 0,
    loss: str | BoundedLoss = "zero-one",
    prior_batches: Iterable[Any] | None = None,
) -> tuple[Certificate, dict[str, Tensor]]:
    r"""Draw one network from the posterior and bound its own expected loss (a disintegrated bound).

    .. math:: \mathrm{kl}(\hat L(W') \| L(W')) \le \frac{\ln\frac{dQ}{dP}(W') + \ln(2\sqrt n/\delta)}{n}, \qquad
        \ln\frac{dQ}{dP}(W + u) = \frac{\|W + u - W_0\|^2 - \|u\|^2}{2\sigma^2}

    with probability 1 - δ over the examples *and the draw* (Rivasplata et al. 2020, theorem 1). It is about W' alone,
    the one network that is returned; drawing again and keeping the best would break it.

    Args:
        model: See :func:`certify`.
        prior: See :func:`certify`.
        batches: See :func:`certify`.
        sigma: Standard deviation of posterior and prior.
        delta: One minus the confidence.
        seed: Seed of the draw; fixed beforehand.
        loss: See :func:`certify`.
        prior_batches: See :func:`certify`.

    Returns:
        The certificate, and W' by parameter name.

    Raises:
        ArgumentError: See :func:`certify`.

    Example:
        >>> x = torch.linspace(-1, 1, 400)[:, None]
        >>> model = nn.Linear(1, 2)
        >>> prior = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        >>> _ = model.load_state_dict({"weight": torch.tensor([[-8.0], [8.0]]), "bias": torch.zeros(2)})
        >>> batches = [(x, (x[:, 0] > 0).long())]
        >>> certificate, weights = certify_draw(model, prior=prior, batches=batches, sigma=1.0)
        >>> certificate.single_draw, list(weights)
        (True, ['weight', 'bias'])
    """
    check_delta(delta)
    whole("seed", seed, minimum=0, hint="It is the seed of the draw.")
    risk = _examined(model, prior, batches, loss, prior_batches)
    posterior = per_parameter("sigma", sigma, risk.parameters)
    mean, value, weights = _drawn(risk, posterior, seed)
    log_ratio = 0.0
    for name, drawn in weights.items():
        center = prior[name].to(drawn.device).double()
        out, back = (drawn.double() - center).square().sum(), (drawn.double() - mean[name].double()).square().sum()
        log_ratio += float(out - back) / (2 * posterior[name] ** 2)
    n = risk.num_examples or 0
    _check_size(n)
    empirical = PosteriorRisk(value=value, upper=value, delta=0.0, num_draws=1, num_examples=n)
    certificate = Certificate(
        # The logarithm is negative where W' is likelier under the prior; the bound is proved for it as it is.
        risk=kl_inverse(value, max(0.0, log_ratio + math.log(2 * math.sqrt(n) / delta)) / n),
        loss=_name_of(loss),
        bound="seeger-maurer, single draw",
        empirical=empirical,
        kl=log_ratio,
        n=n,
        delta=delta,
        delta_bound=delta,
        num_searched=1,
        sigma=sigma,
        prior_sigma=sigma,
        tried=(),
        single_draw=True,
        assumptions=_assumptions(prior_batches is not None),
    )
    return certificate, weights


def _examined(
    model: nn.Module,
    prior: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: str | BoundedLoss,
    prior_batches: Iterable[Any] | None,
) -> EmpiricalRisk:
    """Return the risk to certify, after everything that can be checked before a pass was."""
    if isinstance(loss, str):
        loss = LOSSES[choice("loss", loss, LOSSES)]
    elif not callable(loss):
        raise ArgumentTypeError(f"loss is {loss!r}, but a name or a function of (output, targets) is needed.")
    risk = EmpiricalRisk(model, batch_mean(loss), batches)
    frozen = {name: p for name, p in risk.model.named_parameters() if not p.requires_grad}
    check_prior({**risk.parameters, **frozen}, prior)
    for name, parameter in frozen.items():
        if not torch.equal(parameter, prior[name].to(parameter)):
            raise ArgumentError(
                f"{name!r} is frozen but differs from the prior, which leaves it outside KL(Q‖P). Let it require "
                "gradients, or put the same values into the prior if the examples had no part in them."
            )
    check_buffers(risk.model, prior)
    check_independent(batches)
    if prior_batches is not None:
        check_disjoint(batches, prior_batches)
    return risk


@torch.no_grad()
def _drawn(
    risk: EmpiricalRisk, sigma: Mapping[str, float], seed: int
) -> tuple[dict[str, Tensor], float, dict[str, Tensor]]:
    """Return W, the mean loss at one draw W' from the posterior, and W'."""
    mean = {name: parameter.detach().clone() for name, parameter in risk.parameters.items()}
    with drawing(risk, sigma) as draw:
        draw(Stream(seed).child(_STREAM))
        value = risk.mean()
        drawn = {name: parameter.detach().clone() for name, parameter in risk.parameters.items()}
    return mean, value, drawn


def _name_of(loss: str | BoundedLoss) -> str:
    return loss if isinstance(loss, str) else getattr(loss, "__name__", "given")


def _check_size(n: int) -> None:
    if n < _SMALLEST:
        raise ArgumentError(
            f"there are {n} examples, but at least {_SMALLEST} are needed: ln(2√n/δ) is proved from there on, and no "
            "bound would say anything. Certify with more data."
        )


def _assumptions(checked: bool) -> tuple[str, ...]:
    prior = "no example of the prior's data is among them (checked)" if checked else "the prior did not depend on them"
    return (
        "The examples are drawn independently from what new examples will be drawn from;",
        f"{prior};",
        "sigma, the inequality, delta and the seed were fixed before the examples were seen.",
    )
