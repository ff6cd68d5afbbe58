"""What is looked at before anything is certified: the model, its prior, the loss and the examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flatmin.bounds.monte_carlo import LOSSES, BoundedLoss, batch_mean
from flatmin.bounds.posterior import check_buffers, check_copied, check_prior
from flatmin.bounds.samples import check_disjoint, check_independent
from flatmin.checks import choice
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import ArgumentError, ArgumentTypeError

_SMALLEST = 8
_COARSEST = 1e-6  # relative spacing of numbers: float32 is fine, 16 bits are not


def examined(
    model: nn.Module,
    prior: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: str | BoundedLoss,
    prior_batches: Iterable[Any] | None,
) -> EmpiricalRisk:
    """Return the risk to certify, after everything that can be checked before a pass was.

    Raises:
        ArgumentError: See :func:`~flatmin.bounds.certify`.
        ArgumentTypeError: See there.
        NonFiniteError: See there.
    """
    if isinstance(loss, str):
        loss = LOSSES[choice("loss", loss, LOSSES)]
    elif not callable(loss):
        raise ArgumentTypeError(f"loss is {loss!r}, but a name or a function of (output, targets) is needed.")
    risk = EmpiricalRisk(model, batch_mean(loss), batches)
    _check_precision(risk.parameters)
    frozen = {name: p for name, p in risk.model.named_parameters() if not p.requires_grad}
    check_prior({**risk.parameters, **frozen}, prior)
    check_copied(risk.model, prior)
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


def _check_precision(parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if torch.finfo(parameter.dtype).eps > _COARSEST:
            raise ArgumentError(
                f"{name!r} has weights of {parameter.dtype}, to whose spacing the noise would be rounded, so that the "
                "draws would not come from the Gaussian that KL is computed for. Certify model.float() against a prior "
                "in float32."
            )


def name_of(loss: str | BoundedLoss) -> str:
    """Return what a certificate calls its loss."""
    return loss if isinstance(loss, str) else getattr(loss, "__name__", "given")


def check_size(n: int) -> None:
    """Raise ArgumentError if there are too few examples."""
    if n < _SMALLEST:
        raise ArgumentError(
            f"there are {n} examples, but at least {_SMALLEST} are needed: ln(2√n/δ) is proved from there on, and no "
            "bound would say anything. Certify with more data."
        )


def assumptions(*, checked: bool, num_searched: int) -> tuple[str, ...]:
    """Return what must be true for a certificate to hold.

    Args:
        checked: Whether the prior's examples were compared with those of the certificate.
        num_searched: How many standard deviations were tried.
    """
    prior = "no example of the prior's data is among them (checked)" if checked else "the prior did not depend on them"
    sigma = "sigma" if num_searched == 1 else f"the {num_searched} candidates for sigma"
    return (
        "The examples are drawn independently from what new examples will be drawn from;",
        f"{prior};",
        f"{sigma}, the inequality, delta, the number of draws and their seed were fixed before the examples were seen.",
    )
