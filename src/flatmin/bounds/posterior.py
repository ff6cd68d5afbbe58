r"""The Gaussian posterior around trained weights, the Gaussian prior around others, and their distance.

.. math:: Q = \mathcal N(W, \Sigma_Q), \quad P = \mathcal N(W_0, \Sigma_P), \qquad
    \mathrm{KL}(Q \| P) = \frac12 \sum_i \Big[\frac{(W_i - W_{0,i})^2}{\sigma_{P,i}^2}
    + \frac{\sigma_{Q,i}^2}{\sigma_{P,i}^2} - 1 - \ln\frac{\sigma_{Q,i}^2}{\sigma_{P,i}^2}\Big]

(proposition A.2 of the NSO paper), diagonal, one standard deviation for each parameter tensor, summed in float64.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from flatmin.checks import positive
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError

Sigma = float | Mapping[str, float]
"""A standard deviation for all weights, or one for each pattern of parameter names; the first that fits counts."""

_HINT = "It is the standard deviation of the noise, in units of the weights."


def per_parameter(name: str, sigma: Sigma, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the standard deviation for each parameter.

    Raises:
        ArgumentError: One is not above 0, or a parameter fits no pattern.
        ArgumentTypeError: One is no number.

    Example:
        >>> per_parameter("sigma", {"*.bias": 0.1, "*": 0.2}, {"a.weight": torch.ones(1), "a.bias": torch.ones(1)})
        {'a.weight': 0.2, 'a.bias': 0.1}
    """
    if not isinstance(sigma, Mapping):
        value = positive(name, sigma, hint=_HINT)
        return dict.fromkeys(parameters, value)
    found = {}
    for parameter in parameters:
        fitting = [value for pattern, value in sigma.items() if fnmatch.fnmatchcase(parameter, pattern)]
        if not fitting:
            raise ArgumentError(
                f"{name} names {', '.join(map(repr, sigma))}, and parameter {parameter!r} fits none of them. Add an "
                "entry '*' for the rest."
            )
        found[parameter] = positive(f"{name}[{parameter!r}]", fitting[0], hint=_HINT)
    return found


def kl_divergence(
    mean: Mapping[str, Tensor],
    prior: Mapping[str, Tensor],
    sigma: Mapping[str, float],
    prior_sigma: Mapping[str, float],
) -> float:
    """Return KL(Q‖P) in nats.

    Args:
        mean: W, by parameter name.
        prior: W₀, by the same names.
        sigma: Standard deviation of Q for each parameter.
        prior_sigma: That of P.

    Raises:
        ArgumentError: A name is missing in the prior, or has another shape there.
        NonFiniteError: A weight is NaN or infinite.

    Example:
        >>> W, W0 = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}
        >>> kl_divergence(W, W0, {"w": 0.5}, {"w": 0.5})           # 5² / (2 · 0.5²)
        50.0
    """
    check_prior(mean, prior)
    total = 0.0
    for name, weight in mean.items():
        ratio = (sigma[name] / prior_sigma[name]) ** 2
        difference = weight.detach().double() - prior[name].detach().to(weight.device).double()
        square = float(difference.square().sum())
        total += 0.5 * (square / prior_sigma[name] ** 2 + weight.numel() * (ratio - 1 - math.log(ratio)))
    return max(0.0, total)


def check_prior(mean: Mapping[str, Tensor], prior: Mapping[str, Tensor]) -> None:
    """Raise unless ``prior`` holds a finite tensor of the same shape for every name of ``mean``, and that is finite."""
    if not isinstance(prior, Mapping):
        raise ArgumentTypeError(
            f"prior is a {type(prior).__name__}, but named tensors are needed: the state_dict() of the weights that "
            "training started from, taken before training (copy.deepcopy: a state_dict shares memory with the model)."
        )
    for name, weight in mean.items():
        if name not in prior:
            raise ArgumentError(
                f"the prior has no entry {name!r}. There are {', '.join(map(repr, list(prior)[:8]))}. Pass the "
                "state_dict() of the same model before training."
            )
        if prior[name].shape != weight.shape:
            raise ArgumentError(
                f"{name!r} has shape {tuple(prior[name].shape)} in the prior and {tuple(weight.shape)} in the model. "
                "Posterior and prior must be weights of one network."
            )
        for where, tensor in (("model", weight), ("prior", prior[name])):
            if not tensor.isfinite().all():
                raise NonFiniteError(
                    f"{name!r} holds NaN or infinity in the {where}, so there is nothing to certify. Likely cause: "
                    "training diverged."
                )


def check_buffers(model: nn.Module, prior: Mapping[str, Tensor]) -> None:
    """Raise unless the model's buffers are those of the prior: what training put there is outside KL(Q‖P).

    Raises:
        ArgumentError: A buffer of floating numbers differs, the prior has none to compare with, or batch-norm takes the
            statistics of the batch at hand.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ArgumentError(
                f"{name!r} is a {type(module).__name__} without running statistics, which normalises by the batch at "
                "hand in evaluation mode too: what it says of one example depends on others, so the losses are not "
                "independent. Use group or layer norm."
            )
    for name, buffer in model.named_buffers():
        if not buffer.is_floating_point():
            continue
        if name in prior and torch.equal(prior[name].to(buffer), buffer):
            continue
        what = "differs from that of the prior" if name in prior else "is not in the prior"
        raise ArgumentError(
            f"the buffer {name!r} {what}. Buffers such as running statistics of batch-norm are learnt from the "
            "training data but no part of the posterior, so no bound holds. Freeze them from the prior on (batch-norm "
            "in evaluation mode while training), use group or layer norm, or fold them into the weights beforehand."
        )
