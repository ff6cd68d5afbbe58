"""flatmin, as its user would call it."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from curvature.case import Case, Outcome, descending
from curvature.problems import Problem
from flatmin.curvature import Hessian, TraceEstimate
from flatmin.curvature.eigenvalues import top_eigenvalues
from flatmin.curvature.ghost import ggn_trace
from flatmin.curvature.trace import call

RTOL = 0.02
K = 5  # eigenvalues


def hessian(problem: Problem, memory: int | None = None) -> Hessian:
    """Return the operator."""
    return Hessian(problem.model, problem.loss_fn, problem.batches, memory=memory)


def _told(found: TraceEstimate) -> str:
    """Return how it was found, and why so if it says."""
    return ": ".join(filter(None, (found.method, found.reason)))


def _trace(method: str, operator: Hessian, _: object, seed: int) -> Outcome:
    found = call.trace(operator, rtol=RTOL, method=method, seed=seed)
    return Outcome((found.value,), found.num_matvecs, found.gradients, _told(found))


def _exact(operator: Hessian, _: object, seed: int) -> Outcome:
    found = ggn_trace(operator, seed=seed)
    return Outcome((found.value,), found.num_matvecs, found.gradients, found.reason)


def _eigenvalues(operator: Hessian, _: object, seed: int) -> Outcome:
    found = top_eigenvalues(operator, k=K, seed=seed)
    return Outcome(descending(found.values.tolist()), found.num_matvecs, found.gradients, found.route)


def _both(operator: Hessian, _: object, seed: int) -> Outcome:
    found: Any = call.trace(operator, rtol=RTOL, k=K, seed=seed)
    pairs = found.eigenvalues
    values = () if pairs is None else descending(pairs.values.tolist())
    return Outcome((found.value, *values), found.num_matvecs, found.gradients, _told(found))


METHODS = get_args(call.Method)

OURS = (
    *(Case("flatmin", "trace", method, hessian, partial(_trace, method)) for method in METHODS),
    Case("flatmin", "trace", "ggn_trace", hessian, _exact),
    Case("flatmin", "eigenvalues", "top_eigenvalues", hessian, _eigenvalues),
    Case("flatmin", "both", "trace, k=5", hessian, _both),
)
