"""The pure driver: a flow over a function of named tensors. It changes nothing; the in-place driver's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flatmin.perturb.displace import realize
from flatmin.perturb.flow import (
    FULL_BATCH,
    Displacement,
    Draw,
    Flow,
    FlowFunction,
    Realized,
    Request,
    Stay,
    Weights,
    plan,
)
from flatmin.streams import Stream
from flatmin.vectors import Vector


def gradient(
    flow: FlowFunction,
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: Mapping[str, Tensor],
    *,
    full_loss: Callable[[dict[str, Tensor]], Tensor] | None = None,
    seed: int = 0,
    step: int = 0,
) -> dict[str, Tensor]:
    """Return the direction that a method would step in, for a loss that is a function of named tensors.

    Args:
        flow: A flow with its hyperparameters bound, as ``functools.partial(flows.nso, sigma=0.1)``.
        loss: Maps a dict like ``params`` to a scalar tensor; differentiable by ``torch.func.grad``.
        params: The weights w, by name; left alone.
        full_loss: The loss over all data, where ``flow`` tells it from that of a mini-batch; ``loss`` if not given.
        seed: Seed of the noise.
        step: Number of steps taken, as an optimizer counts them: it selects the stream of the noise.

    Returns:
        The direction, by name, of the shapes of ``params``. An optimizer given the same seed, at the same step, puts
        these numbers into ``.grad``.

    Example:
        >>> import functools, flatmin as fm                  # two-point smoothing is exact on quadratics
        >>> fm.gradient(functools.partial(fm.flows.nso, sigma=0.1), lambda w: 3 * w["x"] ** 2, {"x": torch.tensor(2.0)})
        {'x': tensor(12.)}
    """
    tensors = dict(enumerate(params.values()))

    def answer(request: Displacement | Request) -> Vector:
        if isinstance(request, Weights):
            return Vector(tensors)
        if isinstance(request, Realized):
            return realize(request.draw, tensors)
        point = Vector(tensors)
        if not isinstance(request, Stay):
            point += realize(request, tensors) if isinstance(request, Draw) else request
        function = full_loss if full_loss is not None and request == FULL_BATCH else loss
        gradients = torch.func.grad(function)(dict(zip(params, point.tensors.values(), strict=True)))
        return Vector(dict(enumerate(gradients.values())))

    stream = Stream(seed, (step,))
    planned = plan(flow(stream))
    if planned is not None:
        direction = sum((answer(u) * weight for u, weight in planned), start=Vector({}))
    else:
        direction, _ = run_live(flow(stream), answer)
    return {name: direction.tensors[i] for i, name in enumerate(params)}


def run_live(flow: Flow, answer: Callable[[Displacement | Request], Vector]) -> tuple[Vector, dict[str, Vector]]:
    """Run a flow to its end; return its direction and whatever it gives beside it."""
    try:
        request = next(flow)
        while True:
            request = flow.send(answer(request))
    except StopIteration as stop:
        return stop.value if isinstance(stop.value, tuple) else (stop.value, {})
