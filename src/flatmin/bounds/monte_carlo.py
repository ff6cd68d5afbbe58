r"""The empirical risk of the posterior, from draws of the weights, with the confidence that belongs to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatmin.bounds.coins import check_delta, kl_inverse
from flatmin.curvature.batch import num_examples, tensors_in
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from flatmin.noise import Gaussian
from flatmin.perturb.displace import Displacer
from flatmin.perturb.flow import Draw
from flatmin.streams import Stream
from flatmin.vectors import PerParameter

if TYPE_CHECKING:
    from flatmin.curvature.risk import EmpiricalRisk

BoundedLoss = Callable[[Any, Any], Tensor]
"""``loss(output, targets)``, or for a mapping ``loss(output, batch)``: one number in [0, 1] for each example, (n,)."""

_STREAM = int.from_bytes(b"posterior")
P_MIN = 1e-4
"""Where cross-entropy is clamped."""


def zero_one(output: Any, targets: Any) -> Tensor:
    """Return 1 where the class of the largest output is not the target, and 0 elsewhere, shape (n,).

    Outputs with NaN are no class, and wrong.

    Example:
        >>> zero_one(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 1]))
        tensor([0., 1.])
    """
    logits, labels = _classified(output, targets)
    return ((logits.argmax(dim=1) != labels) | logits.isnan().any(dim=1)).float()


def clamped_cross_entropy(output: Any, targets: Any, *, p_min: float = P_MIN) -> Tensor:
    r"""Return :math:`-\ln\max(p_y, p_\min) / \ln(1/p_\min)`, shape (n,) (Pérez-Ortiz et al. 2021); 1 for NaN.

    Example:
        >>> clamped_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), p_min=0.25)
        tensor([0.5000])
    """
    if not 0 < p_min < 1:
        raise ArgumentError(f"p_min is {p_min}, but it must lie between 0 and 1: it is the least probability.")
    logits, labels = _classified(output, targets)
    logs = torch.log_softmax(logits.double(), dim=1).gather(1, labels[:, None]).squeeze(1)
    lowest = math.log(p_min)
    return (logs.nan_to_num(nan=lowest).clamp(min=lowest) / lowest).float()


LOSSES: dict[str, BoundedLoss] = {"zero-one": zero_one, "cross-entropy": clamped_cross_entropy}


def batch_mean(loss: BoundedLoss) -> Callable[[Any, Any], Tensor]:
    """Return the loss function of an :class:`EmpiricalRisk`: the mean over the batch, checked to lie in [0, 1].

    The function returned raises ArgumentError for losses outside, ArgumentTypeError for another number of losses than
    examples, and NonFiniteError for NaN.
    """

    def mean(output: Any, targets: Any) -> Tensor:
        losses = loss(output, targets)
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            raise ArgumentTypeError(
                "the loss returned no tensor of shape (n,), one number an example, which a certificate needs. Likely "
                "cause: the mean was taken. Pass reduction='none'."
            )
        n = num_examples(targets if isinstance(targets, Mapping) else (output, targets))
        if len(losses) != n:
            raise ArgumentTypeError(
                f"the loss returned {len(losses)} numbers for {n} examples, but a certificate needs one an example: "
                "only examples are independent. For several predictions an example, return their mean."
            )
        if bool(losses.isnan().any()):
            raise NonFiniteError(
                "the loss of an example is NaN, which no bound covers. Look at the data and at the loss for outputs "
                "that overflow: sigma may be too large for these weights."
            )
        if not bool(((losses >= 0) & (losses <= 1)).all()):
            raise ArgumentError(
                f"losses run from {float(losses.min()):.4g} to {float(losses.max()):.4g}, but the bounds hold for "
                "[0, 1]. Clamp them and divide by the largest, as loss='cross-entropy' does, or take 'zero-one'."
            )
        return losses.double().mean()

    return mean


@dataclass(frozen=True, kw_only=True)
class PosteriorRisk:
    """The mean loss over the examples of networks drawn from the posterior, with an upper bound.

    Attributes:
        value: The mean over all draws.
        upper: What the expectation over the posterior does not exceed, with probability 1 - delta over the draws.
        delta: One minus the confidence.
        num_draws: Independent draws of the weights.
        num_examples: n.
    """

    value: float
    upper: float
    delta: float
    num_draws: int
    num_examples: int


def posterior_risk(
    risk: EmpiricalRisk, sigma: Mapping[str, float], *, num_passes: int, delta: float, seed: int
) -> PosteriorRisk:
    r"""Estimate the expected loss under N(W, diag σ²) over all examples, each batch with draws of its own.

    The mean losses X_j of the batches are independent numbers in [0, 1], whose weighted mean has the expectation that
    is sought; for such (Hoeffding 1963, theorem 1, which does not ask for equal laws) with m numbers of weights v_j,

    .. math:: L \le m\, v_{\max}\ \mathrm{kl}^{-1}\Big(\frac{\sum_j v_j X_j}{m\, v_{\max}} \Big| \frac{\ln(1/\delta)}{m}
        \Big)

    with probability 1 - δ. One draw for the whole data, as is usual, gives one number a pass; one draw a batch gives as
    many as there are batches, at the same price.

    Args:
        risk: The model and the data, with a mean loss in [0, 1].
        sigma: Standard deviation for each parameter.
        num_passes: Passes over the data.
        delta: One minus the confidence.
        seed: Seed of the draws.
    """
    check_delta(delta)
    stream, total, largest, draws = Stream(seed).child(_STREAM), 0.0, 0, 0
    with drawing(risk, sigma) as draw:
        draw(stream.child(draws))
        for _ in range(num_passes):
            for part in risk.losses():
                total += part.size * float(part.loss)
                largest, draws = max(largest, part.size), draws + 1
                draw(stream.child(draws))
    n = risk.num_examples or 0
    value = total / (num_passes * n)
    ratio = draws * largest / (num_passes * n)  # m times the largest weight, 1 for equal batches
    upper = min(1.0, ratio * kl_inverse(value / ratio, math.log(1 / delta) / draws))
    return PosteriorRisk(value=value, upper=upper, delta=delta, num_draws=draws, num_examples=n)


@contextmanager
def drawing(risk: EmpiricalRisk, sigma: Mapping[str, float]) -> Iterator[Callable[[Stream], None]]:
    """Observe ``risk``, with what moves the weights to the draw from N(W, diag σ²) at a place of a stream."""
    law, scale = Gaussian(), PerParameter(tuple(sigma[name] for name in risk.parameters))
    with risk.observed():
        risk.check_weights()
        displacer = Displacer(dict(enumerate(risk.parameters.values())))
        try:
            yield lambda stream: displacer.displace(scale * Draw(law, stream))
        finally:
            displacer.release()


def _classified(output: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Return class scores (n, classes) and class numbers (n,) that fit each other."""
    logits, labels = _logits(output), _labels(targets)
    if len(logits) != len(labels):
        raise ArgumentError(
            f"there are {len(logits)} outputs for {len(labels)} class numbers in a batch, "
            "but every example needs one of each."
        )
    strange = (labels < 0) | (labels >= logits.shape[1])
    if bool(strange.any()):
        raise ArgumentError(
            f"a target is {int(labels[strange][0])}, but the model has scores for classes 0 to {logits.shape[1] - 1}. "
            "Likely cause: another network, a label that means 'ignore', or one score for two classes. Leave such "
            "examples out, or pass a loss function of your own."
        )
    return logits, labels


def _logits(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.dim() == 2:
        return logits
    shapes = ", ".join(str(tuple(t.shape)) for t in tensors_in(output))
    raise ArgumentTypeError(
        f"the model's output holds tensors of shape {shapes or 'none'}, but class scores (n, classes) are needed, as a "
        "tensor or as output.logits. Pass a loss function of your own."
    )


def _labels(targets: Any) -> Tensor:
    labels = targets if isinstance(targets, Tensor) else targets.get("labels") if hasattr(targets, "get") else None
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        raise ArgumentTypeError(
            "the targets are no class numbers of shape (n,), nor does the batch hold such 'labels'. Pass a loss "
            "function of your own."
        )
    return labels.long()
