"""The traces of all layers from one pass, with shares whose errors know of each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flatmin.checks import positive, whole
from flatmin.curvature.counted import Counted
from flatmin.curvature.ghost import ggn_trace
from flatmin.curvature.layerwise.results import Layer, LayerwiseResult
from flatmin.curvature.layerwise.sampling import BlockTraces, Tolerance, sampled_traces
from flatmin.curvature.operators import GGN, FunctionalHessian, Hessian, Operator, RiskOperator
from flatmin.curvature.results import Estimate
from flatmin.errors import ArgumentError
from flatmin.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

    from flatmin.curvature.ghost import GGNTrace

_STREAM = int.from_bytes(b"layers")
_FIXED_BUDGET, _TOLERANCE_BUDGET = 100, 10_000

Layers = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Plan:
    """What is known of the traces, and what has to be sampled by which operator.

    Attributes:
        known: Traces of the Gauss-Newton blocks, if they were computed.
        sampled: Operators, and the parameters whose blocks of them are sampled.
    """

    known: GGNTrace | None
    sampled: list[tuple[Operator, Collection[str]]]


def block_traces(
    operator: Operator,
    layers: Layers,
    *,
    normalized: bool,
    num_matvecs: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    control_variate: bool | None = None,
    seed: int = 0,
) -> LayerwiseResult:
    """Return the trace of every layer; see :func:`layerwise`."""
    given = rtol is not None or atol is not None
    asked = num_matvecs if num_matvecs is not None else _TOLERANCE_BUDGET if given else _FIXED_BUDGET
    budget = whole("num_matvecs", asked, minimum=2, hint="It counts products; one alone has no standard error.")
    stream = Stream(whole("seed", seed, minimum=0, hint="It is the seed of the probes.")).child(_STREAM)
    hint = "It is the standard error that every layer's trace is to reach."
    relative, absolute = (
        0.0 if value is None else positive(name, value, hint=hint) for name, value in (("rtol", rtol), ("atol", atol))
    )
    sizes = torch.tensor([sum(operator.layout.shapes[n].numel() for n in names) for names in layers.values()])
    unit = sizes.double() if normalized else torch.ones(len(sizes), dtype=torch.float64)
    tolerance = Tolerance(relative, absolute * unit) if given else None

    before = operator.gradients
    plan = _plan(operator, control_variate, seed, accuracy=min(0.01, relative / 2 or 0.01))
    found = _known(plan, layers)
    spent = 0
    for i, (part, names) in enumerate(plan.sampled):
        A = Counted(part)
        places = [[part.layout.slices[n] for n in layer if n in names] for layer in layers.values()]
        part_of = {"budget": budget // len(plan.sampled), "tolerance": tolerance, "stream": stream.child(i)}
        with A.session():
            sampled_traces(A, places, found, **part_of)
        spent += A.num_matvecs
    routes = ("" if plan.known is None else plan.known.route, operator.route if spent else "")
    return LayerwiseResult(
        quantity="normalized trace" if normalized else "trace",
        layers=layer_rows(found, layers, sizes, unit),
        whole=_whole(found, float(sizes.sum()) if normalized else 1.0),
        num_matvecs=spent,
        gradients=operator.gradients - before,
        seed=seed,
        route=", ".join(filter(None, routes)),
        converged=tolerance is None or found.met(tolerance),
    )


def _plan(operator: Operator, control_variate: bool | None, seed: int, accuracy: float) -> _Plan:
    everything = _Plan(None, [(operator, operator.layout.shapes)])
    if control_variate is False:
        return everything
    if not isinstance(operator, RiskOperator) or type(operator) not in (Hessian, GGN):
        if control_variate:
            raise ArgumentError(
                f"control_variate is True, but the operator is a {type(operator).__name__}: only of a Hessian or a GGN "
                "is the Gauss-Newton part known exactly. Leave it out."
            )
        return everything
    known = ggn_trace(operator, rtol=accuracy, seed=seed)
    if control_variate and not known.covered:
        raise ArgumentError(
            f"control_variate is True, but no parameter's Gauss-Newton trace is known: {known.reason}. Leave it out to "
            "sample everything."
        )
    curved = frozenset(known.curved) if isinstance(operator, Hessian) else frozenset()
    sampled: list[tuple[Operator, Collection[str]]] = []
    if known.uncovered:
        sampled.append((operator, frozenset(known.uncovered)))
    if curved:
        sampled.append((operator.related(FunctionalHessian), curved))
    return _Plan(known, sampled)


def _known(plan: _Plan, layers: Layers) -> BlockTraces:
    """Add the known traces of each layer's parameters up.

    Where they were sampled, their errors come from common signs. Only the error of their sum is known beside their own,
    so that the correlation which explains it is taken for all pairs.
    """
    blocks = {} if plan.known is None else plan.known.blocks
    parts = [[blocks[n] for n in names if n in blocks] for names in layers.values()]
    values, errors, variances = (
        torch.tensor([math.fsum(of(part) for part in layer) for layer in parts], dtype=torch.float64)
        for of in (lambda e: e.value, lambda e: e.stderr, lambda e: e.stderr**2)
    )
    covariance = torch.diag(variances)
    apart, aligned = float(variances.sum()), float(errors.sum()) ** 2
    if plan.known is not None and aligned > apart:
        common = min(1.0, max(0.0, (plan.known.stderr**2 - apart) / (aligned - apart)))
        covariance = (1 - common) * covariance + common * torch.outer(errors, errors)
    return BlockTraces(values, covariance)


def layer_rows(found: BlockTraces, layers: Layers, sizes: Tensor, unit: Tensor | None = None) -> tuple[Layer, ...]:
    """Return a row a layer, shares with their errors by the delta method (see :func:`layerwise`).

    Args:
        found: The traces of the layers' blocks.
        layers: Name to the names of the parameters.
        sizes: Coordinates of each layer, (B,).
        unit: What the values are divided by, (B,); nothing if not given.
    """
    unit = torch.ones(len(sizes), dtype=torch.float64) if unit is None else unit
    total = found.values.sum()
    shares = found.values / total  # NaN where nothing curves
    with_total = found.covariance.sum(dim=1)
    variances = found.variances - 2 * shares * with_total + shares.square() * with_total.sum()
    errors = variances.clamp(min=0).sqrt() / total.abs()
    stderrs = found.variances.sqrt() / unit
    return tuple(
        Layer(
            name=name,
            parameters=parameters,
            size=int(sizes[i]),
            value=float(found.values[i] / unit[i]),
            stderr=float(stderrs[i]),
            share=float(shares[i]),
            share_stderr=float(errors[i]),
            estimate=Estimate(
                value=float(found.values[i] / unit[i]),
                stderr=float(stderrs[i]),
                samples=None if (drawn := found.samples.get(i)) is None else drawn / unit[i],
            ),
        )
        for i, (name, parameters) in enumerate(layers.items())
    )


def _whole(found: BlockTraces, unit: float) -> Estimate:
    variance = float(found.covariance.sum())
    return Estimate(value=float(found.values.sum()) / unit, stderr=math.sqrt(max(variance, 0.0)) / unit)
