"""The peers, each in the cheapest of its documented ways. They are installed and called, never copied.

- PyHessian is given one batch, for which it builds the gradient's graph once and keeps it.
- curvlinops multiplies blocks under ``vmap``. Its data come in batches of at most 64 examples, or its memory would be
  that of all examples times all vectors; the check of determinism, three more gradients, is switched off.
- hessian-eigenthings rebuilds the graph for every product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import hessian_eigenthings as eigenthings
import numpy as np
import pyhessian
import torch
from curvlinops import HessianLinearOperator
from curvlinops.trace import epperly2024xtrace, hutchinson, meyer2020hutch
from scipy.sparse.linalg import LinearOperator, eigsh

from curvature.case import Case, Outcome, descending
from curvature.problems import Problem

_BATCH = 64
K = 5  # eigenvalues


def _pyhessian(problem: Problem) -> Any:
    return pyhessian.hessian(problem.model, problem.loss_fn, data=problem.batch, cuda=False)


def _cleared(hessian: Any) -> None:
    """Drop what it leaves in ``.grad``, which holds the graph."""
    for parameter in hessian.params:
        parameter.grad = None


def _pyhessian_trace(hessian: Any, probes: int, seed: int) -> Outcome:
    torch.manual_seed(seed)
    samples = hessian.trace(maxIter=probes, tol=0.0)
    _cleared(hessian)
    return Outcome((float(np.mean(samples)),), len(samples))


def _pyhessian_default(hessian: Any, _: object, seed: int) -> Outcome:
    torch.manual_seed(seed)
    samples = hessian.trace()
    _cleared(hessian)
    return Outcome((float(np.mean(samples)),), len(samples))


def _pyhessian_eigenvalues(hessian: Any, tol: float, seed: int) -> Outcome:
    torch.manual_seed(seed)
    counted = mock.Mock(side_effect=pyhessian.hessian_vector_product)
    with mock.patch("pyhessian.hessian.hessian_vector_product", counted):
        values, _ = hessian.eigenvalues(top_n=K, tol=tol, maxIter=100 if tol >= 1e-3 else 1000)
    _cleared(hessian)
    return Outcome(descending(values), counted.call_count)


def _curvlinops(problem: Problem) -> HessianLinearOperator:
    inputs, targets = problem.batch
    data = list(zip(inputs.split(_BATCH), targets.split(_BATCH), strict=True))
    if len(inputs) > _BATCH and problem.dimension < 5000:  # small enough for one batch
        data = problem.batches
    return HessianLinearOperator(
        problem.model, problem.loss_fn, problem.parameters, data, check_deterministic=False, num_data=len(inputs)
    )


def _curvlinops_trace(estimator: Callable[..., Any], operator: Any, products: int, seed: int) -> Outcome:
    torch.manual_seed(seed)
    return Outcome((float(estimator(operator, products)),), products)


def _curvlinops_eigenvalues(operator: HessianLinearOperator, tol: float, seed: int) -> Outcome:
    wrapped = operator.to_scipy(dtype=np.float32)
    counted = mock.Mock(side_effect=wrapped.matvec)
    start = np.random.default_rng(seed).standard_normal(wrapped.shape[0]).astype(np.float32)
    counting = LinearOperator(wrapped.shape, matvec=counted, dtype=np.float32)
    values = eigsh(counting, k=K, which="LM", tol=tol, v0=start, return_eigenvectors=False)
    return Outcome(descending(values), counted.call_count)


def _eigenthings(problem: Problem) -> eigenthings.HessianOperator:
    loss = eigenthings.supervised_loss(problem.loss_fn)
    return eigenthings.HessianOperator(problem.model, problem.batches, loss)


def _eigenthings_trace(method: str, operator: Any, products: int, seed: int) -> Outcome:
    result = eigenthings.trace(operator, num_matvecs=products, method=method, seed=seed)
    return Outcome((result.estimate,), products)


def _eigenthings_eigenvalues(operator: Any, max_iter: int | None, seed: int) -> Outcome:
    result = eigenthings.lanczos(operator, k=K, max_iter=max_iter, seed=seed)
    return Outcome(descending(result.eigenvalues.tolist()), result.iterations)


def _eigenthings_power(operator: Any, tol: float, seed: int) -> Outcome:
    result = eigenthings.deflated_power_iteration(
        operator, k=K, tol=tol, max_iter=100 if tol >= 1e-4 else 1000, seed=seed
    )
    return Outcome(descending(result.eigenvalues.tolist()), result.iterations)


HUTCHINSON, HUTCHPP, XTRACE = hutchinson.hutchinson_trace, meyer2020hutch.hutchpp_trace, epperly2024xtrace.xtrace

PEERS = (
    Case("PyHessian", "trace", "hutchinson", _pyhessian, _pyhessian_trace, "hutchinson"),
    Case("PyHessian", "trace", "default", _pyhessian, _pyhessian_default),
    Case("curvlinops", "trace", "hutchinson", _curvlinops, partial(_curvlinops_trace, HUTCHINSON), "hutchinson"),
    Case("curvlinops", "trace", "hutch++", _curvlinops, partial(_curvlinops_trace, HUTCHPP), "hutch++"),
    Case("curvlinops", "trace", "xtrace", _curvlinops, partial(_curvlinops_trace, XTRACE), "xtrace"),
    Case("eigenthings", "trace", "hutchinson", _eigenthings, partial(_eigenthings_trace, "hutchinson"), "hutchinson"),
    Case("eigenthings", "trace", "hutch++", _eigenthings, partial(_eigenthings_trace, "hutch++"), "hutch++"),
    Case(
        "PyHessian", "eigenvalues", "power iteration", _pyhessian, _pyhessian_eigenvalues, efforts=(1e-3, 1e-4, 1e-5)
    ),
    Case(
        "curvlinops", "eigenvalues", "SciPy eigsh", _curvlinops, _curvlinops_eigenvalues, efforts=(1e-2, 1e-3, 1e-4, 0)
    ),
    Case(
        "eigenthings", "eigenvalues", "lanczos", _eigenthings, _eigenthings_eigenvalues,
        efforts=(None, 15, 20, 25, 30, 40, 60, 100),
    ),
    Case("eigenthings", "eigenvalues", "power iteration", _eigenthings, _eigenthings_power, efforts=(1e-4, 1e-5)),
)  # fmt: skip
