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
        ArgumentError: One is not above 0, a parameter fits no pattern, or a plain name is that of no parameter.
        ArgumentTypeError: One is no number, or a pattern is no string.

    Example:
        >>> per_parameter("sigma", {"*.bias": 0.1, "*": 0.2}, {"a.weight": torch.ones(1), "a.bias": torch.ones(1)})
        {'a.weight': 0.2, 'a.bias': 0.1}
    """
    if not isinstance(sigma, Mapping):
        value = positive(name, sigma, hint=_HINT)
        return dict.fromkeys(parameters, value)
    for pattern in sigma:
        if not isinstance(pattern, str):
            raise ArgumentTypeError(f"{name} has the key {pattern!r}, but keys are patterns of parameter names.")
        if pattern not in parameters and not any(sign in pattern for sign in "*?["):
            raise ArgumentError(
                f"{name} names the parameter {pattern!r}, but there is no such one that is trained. Likely cause: a "
                f"misprint. There are {', '.join(map(repr, list(parameters)[:8]))}."
            )
    found = {}
    for parameter in parameters:
        fitting = [value for pattern, value in sigma.items() if fnmatch.fnmatchcase(parameter, pattern)]
        if not fitting:
            raise ArgumentError(
                f"{name} names {', '.join(map(repr, sigma)) or 'nothing'}, and parameter {parameter!r} fits none of "
                "them. Add an entry '*' for the rest."
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
        ArgumentError: A name is missing in the prior, or has another shape there, or KL exceeds all numbers.
        NonFiniteError: A weight is NaN or infinite.

    Example:
        >>> W, W0 = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}
        >>> kl_divergence(W, W0, {"w": 0.5}, {"w": 0.5})           # 5² / (2 · 0.5²)
        50.0
    """
    check_prior(mean, prior)
    total = 0.0
    for name, weight in mean.items():
        out, back = sigma[name], prior_sigma[name]
        difference = weight.detach().double() - prior[name].detach().to(weight.device).double()
        square, ratio = float(difference.div_(back).square().sum()), out / back
        log_ratio = math.log(out) - math.log(back)  # the logarithm of a ratio that underflows would not be finite
        total += 0.5 * (square + weight.numel() * (ratio * ratio - 1 - 2 * log_ratio))
    if not math.isfinite(total):
        raise ArgumentError(
            f"KL(Q‖P) is {total}: the standard deviations of posterior ({min(sigma.values()):.3g} and more) and prior "
            f"({min(prior_sigma.values()):.3g} and more) are too small for the distance of the weights, or too far "
            "apart. Take a sigma of the order of the noise that the network bears."
        )
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
        if not isinstance(prior[name], Tensor):
            raise ArgumentTypeError(f"{name!r} is a {type(prior[name]).__name__} in the prior, but a tensor is needed.")
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


def check_copied(model: nn.Module, prior: Mapping[str, Tensor]) -> None:
    """Raise if ``prior`` is the model's own memory, which has moved with it: their distance would be 0 by mistake.

    Raises:
        ArgumentError: A trainable parameter or a buffer of the prior is the very one of the model.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in {**trained, **dict(model.named_buffers())}.items():
        entry = prior.get(name)
        if isinstance(entry, Tensor) and tensor.numel() and entry.data_ptr() == tensor.data_ptr():
            raise ArgumentError(
                f"{name!r} of the prior is the model's own tensor, so that training has changed the prior along with "
                "the model, and KL would be 0. Likely cause: model.state_dict() was kept without a copy. Take "
                "copy.deepcopy(model.state_dict()) before training."
            )


def check_buffers(model: nn.Module, prior: Mapping[str, Tensor]) -> None:
    """Raise unless the model's buffers are those of the prior: what training put there is outside KL(Q‖P).

    Raises:
        ArgumentError: A buffer differs, the prior has none of floating numbers to compare with, or batch-norm takes
            the statistics of the batch at hand.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ArgumentError(
                f"{name!r} is a {type(module).__name__} without running statistics, which normalises by the batch at "
                "hand in evaluation mode too: what it says of one example depends on others, so the losses are not "
                "independent. Use group or layer norm."
            )
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked") or (name not in prior and not buffer.is_floating_point()):
            continue
        if name not in prior:
            raise ArgumentError(
                f"the buffer {name!r} is not in the prior, so nobody can tell whether the training data changed it. "
                "Likely cause: state_dict() leaves out buffers that are not persistent. Take the prior as "
                "copy.deepcopy({**model.state_dict(), **dict(model.named_buffers())}) before training."
            )
        if prior[name].shape == buffer.shape and torch.equal(prior[name].to(buffer), buffer):
            continue
        raise ArgumentError(
            f"the buffer {name!r} differs from that of the prior. Buffers such as running statistics of batch-norm are "
            "learnt from the training data but no part of the posterior, so no bound holds. Freeze them from the prior "
            "on (batch-norm in evaluation mode while training), use group or layer norm, or fold them into the weights "
            "beforehand."
        )
