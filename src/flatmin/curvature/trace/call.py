"""The call: what is checked, and which way is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from flatmin.checks import choice, positive, whole
from flatmin.curvature.counted import Counted
from flatmin.curvature.draws import block_width
from flatmin.curvature.trace.automatic import automatic
from flatmin.curvature.trace.control import control
from flatmin.curvature.trace.deflated import deflated
from flatmin.curvature.trace.forward import forward
from flatmin.curvature.trace.hutchinson import hutchinson
from flatmin.curvature.trace.probes import Law, Probes
from flatmin.curvature.trace.sampling import Goal
from flatmin.curvature.trace.setup import Setup
from flatmin.curvature.trace.sketched import hutchpp
from flatmin.curvature.trace.xtrace import xtrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatmin.curvature.operators import LinearOperator
    from flatmin.curvature.results import TraceEstimate

Method = Literal["auto", "hutchinson", "hutch++", "xtrace", "deflated", "control", "forward"]

_METHODS: dict[str, Callable[[Setup], TraceEstimate]] = {
    "auto": automatic,
    "hutchinson": hutchinson,
    "hutch++": hutchpp,
    "xtrace": xtrace,
    "deflated": deflated,
    "control": control,
    "forward": forward,
}
_FIXED_BUDGET, _TOLERANCE_BUDGET = 100, 10_000


def trace(
    operator: LinearOperator,
    num_matvecs: int | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    method: Method = "auto",
    probes: Law = "rademacher",
    k: int = 0,
    rank: int | None = None,
    seed: int = 0,
    block_size: int | None = None,
) -> TraceEstimate:
    r"""Estimate the trace, with a standard error.

    Example:
        >>> import torch
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> estimate = trace(A, num_matvecs=400, method="hutchinson")
        >>> abs(estimate.value - 5.0) < 3 * estimate.stderr
        True
        >>> trace(torch.eye(3), rtol=0.01)
        TraceEstimate(3 ± 0, 3 matvecs)
    """
    A = Counted(operator)
    goal = _goal(num_matvecs, rtol, atol)
    run = _METHODS[choice("method", method, get_args(Method))]
    choice("probes", probes, get_args(Law))
    whole("seed", seed, minimum=0, hint="It is the seed of the probes.")
    width = block_width(A.d) if block_size is None else block_size
    whole("block_size", width, minimum=1, hint="It is the number of probes that are multiplied at once.")
    whole("k", k, minimum=0, hint="It is the number of eigenvalues to find on the way.")
    if rank is not None:
        whole("rank", rank, minimum=1, hint="It is the dimension of the space whose part of the trace is exact.")
    setup = Setup(A, Probes(probes, seed), goal, width, rank, k)
    with A.session():
        return run(setup)


def _goal(num_matvecs: int | None, rtol: float | None, atol: float | None) -> Goal:
    asked = rtol is not None or atol is not None
    default = _TOLERANCE_BUDGET if asked else _FIXED_BUDGET
    budget = default if num_matvecs is None else num_matvecs
    whole("num_matvecs", budget, minimum=2, hint="It counts products; one alone has no standard error.")
    hint = "It is the standard error to reach; leave it out to spend num_matvecs."
    return Goal(
        budget,
        0.0 if rtol is None else positive("rtol", rtol, hint=hint),
        0.0 if atol is None else positive("atol", atol, hint=hint),
    )
