r"""Flows: a method of training, written as a generator that knows no autograd, no device and no framework.

A flow yields a displacement of the weights, is sent the gradient of the loss found there, and returns the direction to
step in::

    def sam(stream, *, rho):
        g = yield STAY                       # the gradient at w
        return (yield rho * g.unit())        # the gradient at w + rho g / |g|

One text serves every driver: the pure one (:func:`flatmin.perturb.gradient`) and the in-place one (the optimizers).

A displacement is :data:`STAY`, a symbolic :class:`Draw` of noise, or a concrete :class:`~flatmin.vectors.Vector`. Two
requests are answered with a vector and cost no evaluation: :data:`WEIGHTS`, and :class:`Realized` for the numbers of a
draw.

A flow that never looks *into* a gradient, only adds and scales what it is sent, is **linear**: :func:`plan` runs it on
symbols and finds all its displacements and weights before any gradient exists. Loss scaling, gradient accumulation,
clipping and reduction over ranks commute with a linear flow.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple, NoReturn, get_args

from flatmin.noise import Law
from flatmin.streams import Stream
from flatmin.vectors import PerParameter, Scale, Vector, is_zero


@dataclass(frozen=True)
class Stay:
    """The displacement by nothing: evaluate at the weights themselves.

    Args:
        full_batch: Ask for the gradient over all data, where the other evaluations of the flow are of one mini-batch.
    """

    full_batch: bool = False

    def __neg__(self) -> Stay:
        return self


STAY = Stay()
FULL_BATCH = Stay(full_batch=True)

NoiseScale = Literal["absolute", "parameter", "filter"]
NOISE_SCALES: tuple[str, ...] = get_args(NoiseScale)


@dataclass(frozen=True)
class Draw:
    """The noise at one address, not drawn yet: ``scale`` times a law, one independent draw for each coordinate.

    Args:
        law: Unit-variance law.
        stream: Where in the tree of random streams this draw lives.
        relative_to: Unit of the scale, one or one for each parameter. ``"absolute"``: that of the weights.
            ``"parameter"``: the norm of the parameter. ``"filter"``: the norm of the filter, a parameter's slice along
            its first dimension; a parameter of fewer than two dimensions is one filter.
        scale: Standard deviation, one number or one for each parameter.
    """

    law: Law
    stream: Stream
    relative_to: str | PerParameter[str] = "absolute"
    scale: Scale = 1.0

    def __neg__(self) -> Draw:
        return replace(self, scale=-self.scale)

    def __rmul__(self, scale: Scale) -> Draw:
        if self.scale != 1.0:
            raise TypeError("a Draw is scaled once: sigma * Draw(law, stream)")
        return replace(self, scale=scale)


@dataclass(frozen=True)
class Weights:
    """The request for the weights, as a vector that shares their memory: of use until the next displacement."""


WEIGHTS = Weights()


@dataclass(frozen=True)
class Realized:
    """The request for the numbers that ``draw`` stands for, as a vector."""

    draw: Draw


Displacement = Stay | Draw | Vector
Request = Weights | Realized
Flow = Generator[Displacement | Request, Any, Any]
"""What a flow function returns: yields displacements, is sent gradients, returns a direction.

A method with an update rule of its own may return ``(direction, extras)``, with a dict of further vectors for the rule.
"""

FlowFunction = Callable[..., Flow]
"""``flow(stream, **hyperparameters)``."""


class _LookedAtGradientError(Exception):
    """A flow asked for a number that only a real gradient has."""


class Combination:
    """A linear combination of gradients that nobody has computed yet; weights are exact fractions."""

    __slots__ = ("weights",)

    def __init__(self, weights: dict[int, Fraction]) -> None:
        self.weights: dict[int, Fraction] = weights

    def __add__(self, other: Combination | int) -> Combination:
        if isinstance(other, int) and other == 0:
            return self
        if not isinstance(other, Combination):
            return NotImplemented
        indices = self.weights | other.weights
        return Combination({i: self.weights.get(i, Fraction()) + other.weights.get(i, Fraction()) for i in indices})

    __radd__ = __add__

    def __mul__(self, number: float) -> Combination:
        if not isinstance(number, (int, float)):
            raise _LookedAtGradientError
        return Combination({i: weight * Fraction(number) for i, weight in self.weights.items()})

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> Combination:
        if not isinstance(number, (int, float)):
            raise _LookedAtGradientError
        return Combination({i: weight / Fraction(number) for i, weight in self.weights.items()})

    def __neg__(self) -> Combination:
        return -1 * self

    def __sub__(self, other: Combination) -> Combination:
        return self + -other

    def dot(self, *_: object) -> NoReturn:
        """Refuse: a number would be needed."""
        raise _LookedAtGradientError

    norm = unit = orthogonal_to = __abs__ = sqrt = dot


class Step(NamedTuple):
    """One evaluation of a plan: where, and with which weight its gradient enters the direction."""

    displacement: Stay | Draw
    weight: float


def plan(flow: Flow) -> tuple[Step, ...] | None:
    """Run a flow on symbols and return its evaluations in order; None if it needs real gradients to go on.

    Evaluations of weight zero are left out, and all those at the weights themselves (STAY, or noise of scale zero) are
    taken together: NSO with sigma = 0 plans one plain gradient, bit for bit that of the base optimizer.
    """
    displacements: list[Stay | Draw] = []
    try:
        displacement = next(flow)
        while True:
            if not isinstance(displacement, (Stay, Draw)) or displacement == FULL_BATCH:
                return None
            displacements.append(displacement)
            displacement = flow.send(Combination({len(displacements) - 1: Fraction(1)}))
    except StopIteration as stop:
        weights: dict[int, Fraction] = stop.value.weights
    except _LookedAtGradientError:
        return None
    return tuple(_simplified((d, weights.get(i, Fraction())) for i, d in enumerate(displacements)))


def _simplified(evaluations: Iterable[tuple[Stay | Draw, Fraction]]) -> Iterable[Step]:
    at_rest, moved = Fraction(), list[Step]()
    first = None
    for displacement, weight in evaluations:
        if isinstance(displacement, Stay) or is_zero(displacement.scale):
            at_rest += weight
            first = len(moved) if first is None else first
        elif weight:
            moved.append(Step(displacement, float(weight)))
    if at_rest and first is not None:
        moved.insert(first, Step(STAY, float(at_rest)))
    return moved
