"""Certify one network: drawn once from the posterior, its own loss on new data bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatmin.bounds.certificate import Certificate
from flatmin.bounds.coins import check_delta, kl_inverse
from flatmin.bounds.examination import assumptions, check_size, examined, name_of
from flatmin.bounds.monte_carlo import BoundedLoss, PosteriorRisk, drawing
from flatmin.bounds.posterior import Sigma, per_parameter
from flatmin.checks import whole
from flatmin.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flatmin.curvature.risk import EmpiricalRisk

_STREAM = int.from_bytes(b"draw")


def certify_draw(
    model: nn.Module,
    *,
    prior: Mapping[str, Tensor],
    batches: Iterable[Any],
    sigma: Sigma,
    delta: float = 0.05,
    seed: int = 0,
    loss: str | BoundedLoss = "zero-one",
    num_searched: int = 1,
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
        num_searched: Candidates for ``sigma``, fixed beforehand, among which these examples chose it, such as by
            :func:`certify`; each has its share of ``delta``.
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
    whole("num_searched", num_searched, minimum=1, hint="It counts the candidates for sigma, this one included.")
    risk = examined(model, prior, batches, loss, prior_batches)
    posterior = per_parameter("sigma", sigma, risk.parameters)
    mean, value, weights = _drawn(risk, posterior, seed)
    log_ratio = _log_ratio(weights, mean, prior, posterior)
    n, share = risk.num_examples or 0, delta / num_searched
    check_size(n)
    # The logarithm is negative where W' is likelier under the prior; the bound is proved for it as it is.
    complexity = max(0.0, log_ratio + math.log(2 * math.sqrt(n) / share))
    certificate = Certificate(
        risk=kl_inverse(value, complexity / n),
        loss=name_of(loss),
        bound="seeger-maurer, single draw",
        empirical=PosteriorRisk(value=value, upper=value, delta=0.0, num_draws=1, num_examples=n),
        kl=log_ratio,
        n=n,
        delta=delta,
        delta_bound=share,
        num_searched=num_searched,
        union=math.log(num_searched),
        sigma=sigma,
        prior_sigma=sigma,
        tried=(),
        single_draw=True,
        assumptions=assumptions(checked=prior_batches is not None, num_searched=num_searched),
    )
    return certificate, weights


def _log_ratio(
    weights: Mapping[str, Tensor], mean: Mapping[str, Tensor], prior: Mapping[str, Tensor], sigma: Mapping[str, float]
) -> float:
    """Return ln dQ/dP at ``weights``, for Gaussians of one width around ``mean`` and ``prior``."""
    total = 0.0
    for name, drawn in weights.items():
        center = prior[name].to(drawn.device).double()
        out, back = (drawn.double() - center).square().sum(), (drawn.double() - mean[name].double()).square().sum()
        total += float(out - back) / (2 * sigma[name] ** 2)
    return total


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
