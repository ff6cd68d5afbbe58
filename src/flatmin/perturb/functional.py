"""The pure driver: a flow over a function of named tensors. It changes nothing; the in-place driver's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flatmin.perturb.displace import realize
from flatmin.perturb.flow import Displacement, Draw, FlowFunction, Stay, plan
from flatmin.streams import Stream
from flatmin.vectors import Vector


def gradient(
    flow: FlowFunction,
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: Mapping[str, Tensor],
    *,
    seed: int = 0,
    step: int = 0,
) -> dict[str, Tensor]:
    """Return the direction that a method would step in, for a loss that is a function of named tensors.

    Args:
        flow: A flow with its hyperparameters bound, as ``functools.partial(flows.nso, sigma=0.1)``.
        loss: Maps a dict like ``params`` to a scalar tensor; differentiable by ``torch.func.grad``.
        params: The weights w, by name; left alone.
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

    def evaluate(displacement: Displacement) -> Vector:
        if isinstance(displacement, Stay):
            point = Vector(tensors)
        else:
            point = Vector(tensors) + (
                realize(displacement, tensors) if isinstance(displacement, Draw) else displacement
            )
        gradients = torch.func.grad(loss)(dict(zip(params, point.tensors.values(), strict=True)))
        return Vector(dict(enumerate(gradients.values())))

    stream = Stream(seed, (step,))
    planned = plan(flow(stream))
    if planned is not None:
        direction = sum((evaluate(u) * weight for u, weight in planned), start=Vector({}))
    else:
        direction = _live(flow, stream, evaluate)
    return {name: direction.tensors[i] for i, name in enumerate(params)}


def _live(flow: FlowFunction, stream: Stream, evaluate: Callable[[Displacement], Vector]) -> Vector:
    running = flow(stream)
    try:
        displacement = next(running)
        while True:
            displacement = running.send(evaluate(displacement))
    except StopIteration as stop:
        return stop.value
