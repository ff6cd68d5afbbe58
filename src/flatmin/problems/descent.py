"""Gradient descent by a flow on a problem: the iterates, one after the other, for many seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from flatmin.checks import nonnegative, positive, whole
from flatmin.errors import ArgumentError, NonFiniteError
from flatmin.perturb import FlowFunction, gradient
from flatmin.problems.base import Problem

Tilt = Callable[[int], Tensor]
"""Given the step, the error of that step's stochastic gradient, the same at all points that the step looks at."""


def descent(
    problem: Problem,
    flow: FlowFunction,
    start: Tensor,
    *,
    lr: float | Sequence[float],
    num_steps: int,
    momentum: float = 0.0,
    tilt: Tilt | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    r"""Yield the iterates :math:`M_{i+1} = \mu M_i - \eta_i G_i,\; W_{i+1} = W_i + M_{i+1}`, :math:`M_0 = 0`.

    Zhang, Li, Ju. arXiv:2306.08553, Algorithm 1 (μ = 0) and equation (15), with G what ``flow`` returns.

    Args:
        problem: What is minimised.
        flow: A linear flow with its hyperparameters bound; or any flow, for a single point.
        start: W₀, of shape (*batch, *problem.shape); each point has draws of its own.
        lr: η, or one η for each step.
        num_steps: T.
        momentum: μ, from 0 to below 1.
        tilt: Error of each step's gradient: the step is made on f(w) + ⟨tilt(i), w⟩, so that points of one step share
            their error as they share a mini-batch. Broadcast to the shape of ``start``.
        seed: Of the flow's noise.

    Yields:
        W₀ to W_T, each a tensor of its own, without a graph.

    Raises:
        ArgumentError: A number is out of range.
        NonFiniteError: The iterates left the finite numbers; the message names step and learning rate.

    Example:
        >>> from flatmin.flows import sgd
        >>> from flatmin.problems import Quadratic
        >>> [float(w) for w in descent(Quadratic(1.0, dim=1), sgd, torch.tensor([8.0]), lr=0.5, num_steps=3)]
        [8.0, 4.0, 2.0, 1.0]
    """
    num_steps = whole("num_steps", num_steps, minimum=0, hint="It is T.")
    rates = _rates(lr, num_steps)
    if nonnegative("momentum", momentum, hint="It is the share of the last move that goes on.") >= 1:
        raise ArgumentError(f"momentum is {momentum}, but at 1 and above no move ever ends. Choose one below 1.")
    w = problem.tensor(start).detach().clone()
    move = torch.zeros_like(w)
    if not torch.isfinite(w).all():
        raise NonFiniteError("start is not finite, so that no step can be made from it. Choose another start.")
    yield w
    for step, rate in enumerate(rates):
        direction = gradient(flow, _loss(problem, tilt, step), problem.named(w), seed=seed, step=step)[problem.name]
        move = momentum * move - rate * direction
        w = w + move
        _require_finite(w, f"after step {step + 1} of {num_steps} at learning rate {rate:g}")
        yield w


def _rates(lr: float | Sequence[float], num_steps: int) -> Sequence[float]:
    if not isinstance(lr, Sequence):
        return [positive("lr", lr, hint="It is the learning rate.")] * num_steps
    if len(lr) != num_steps:
        raise ArgumentError(f"lr has {len(lr)} entries for {num_steps} steps. Give one for each step, or one number.")
    return [positive("lr", rate, hint="Give η₀ to η_{T-1}.") for rate in lr]


def _require_finite(w: Tensor, when: str) -> None:
    if not torch.isfinite(w).all():
        raise NonFiniteError(
            f"the weights are no longer finite {when}. Likely cause: the learning rate exceeds two over the curvature "
            "along the way, so that each step is larger than the last. Choose a smaller learning rate."
        )


def _loss(problem: Problem, tilt: Tilt | None, step: int) -> Callable[[dict[str, Tensor]], Tensor]:
    if tilt is None:
        return lambda weights: problem.value(weights).sum()
    error = tilt(step)
    return lambda weights: problem.value(weights).sum() + (error * weights[problem.name]).sum()
