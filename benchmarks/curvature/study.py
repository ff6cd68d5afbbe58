"""How far off the peers' estimators are after so many products, and how many take them to 2 %."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from curvature.peers import HUTCHPP, XTRACE
from curvature.problems import Problem
from curvature.reference import DENSE, Pool, PoolOperator, dense, gauss_newton_trace, long_run, top

TARGET = 0.02
PROBES = {"resnet20": 24, "resnet18": 24, "gpt2": 99}  # in the pool; more cost time and memory
LONG = 600  # probes, where nothing is exact
K = 5

Matrix = Tensor | PoolOperator


def study(problem: Problem, cache: Path, lock: AbstractContextManager) -> dict[str, Any]:
    """Return what is true of a problem, and what it takes the peers' estimators to come near it."""
    if problem.dimension <= DENSE:
        with lock:
            H = dense(problem)
            values = torch.linalg.eigvalsh(H)
        trace, stderr, how = float(H.trace()), 0.0, "the Hessian itself"
        squared = float((H**2).sum() - (H.diagonal() ** 2).sum())
        eigenvalues, residuals = values[values.abs().argsort(descending=True)[:K]], torch.zeros(K)
        matrix: Matrix = H.float()
        pool, repetitions = None, 40
    else:
        pool = Pool.at(cache / f"{problem.name}-pool.pt", problem, PROBES[problem.name], lock)
        matrix = PoolOperator(pool)
        with lock:
            eigenvalues, residuals = top(cache / f"{problem.name}-top.pt", problem, K)
        if problem.piecewise:
            with lock:
                trace, stderr = gauss_newton_trace(problem), 0.0
            how = "that of the GGN, which has the same trace here, from the Jacobian of each example"
        else:
            trace, stderr = long_run(cache / f"{problem.name}-long.pt", problem, LONG, lock)
            how = f"the mean of {LONG} probes"
        squared = off_diagonal(pool)
        repetitions = 4
    relative = math.sqrt(2 * squared) / abs(trace)
    needed = {"hutchinson": {"products": (relative / TARGET) ** 2, "how": "variance 2 (‖H‖² − Σ Hᵢᵢ²)"}}
    for name, estimator, parts in (("hutch++", HUTCHPP, 3), ("xtrace", XTRACE, 2)):
        sizes = _sizes(parts, len(pool) if pool else 48)
        with lock:
            curve = {m: _error(estimator, matrix, pool, m, trace, repetitions) for m in sizes}
        needed[name] = {"curve": curve, **_crossing(curve)}
    return {
        "truth": {
            "trace": trace,
            "stderr": stderr,
            "how": how,
            "eigenvalues": eigenvalues.tolist(),
            "residuals": residuals.tolist(),
        },
        "probe_error": relative,
        "needed": needed,
        "PyHessian stop rule": stop_rule(relative),
    }


def off_diagonal(pool: Pool) -> float:
    """Return an estimate of ‖H‖² − Σ Hᵢᵢ², unbiased: one half of the probes deflates what the other half samples."""
    half = len(pool) // 2
    total = 0.0
    for first, second in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        Q, R = torch.linalg.qr(pool.images[first].T)
        HQ = torch.linalg.solve_triangular(R, pool.second[first].T, upper=True, left=False)
        rest = pool.images[second].T - HQ @ (Q.T @ pool.probes[second].T)
        total += float((HQ.double() ** 2).sum() + (rest.double() ** 2).sum(dim=0).mean()) / 2
    diagonals = [(pool.probes[s] * pool.images[s]).mean(dim=0).double() for s in (slice(0, half), slice(half, None))]
    return total - float(diagonals[0] @ diagonals[1])


def stop_rule(relative: float, repetitions: int = 2000) -> dict[str, float]:
    """Simulate PyHessian's rule, |change of the mean| < 1e-3 or 100 probes, on normal samples of this deviation."""
    generator = torch.Generator().manual_seed(0)
    samples = 1 + relative * torch.randn(repetitions, 100, generator=generator, dtype=torch.float64)
    counts = torch.arange(1, 101)
    means = samples.cumsum(dim=1) / counts
    before = torch.cat([torch.zeros(repetitions, 1, dtype=torch.float64), means[:, :-1]], dim=1)
    stops = (means - before).abs() / (before.abs() + 1e-6) < 1e-3
    stops[:, -1] = True
    last = stops.int().argmax(dim=1)
    found = means[torch.arange(repetitions), last]
    return {"probes": float((last + 1).double().mean()), "error": float((found - 1).square().mean().sqrt())}


def _sizes(parts: int, probes: int) -> list[int]:
    most = probes * 3 // 2 if parts == 3 else probes * 2
    grid = [12, 18, 24, 36, 48, 72]
    return [m for m in grid if m <= 0.8 * most] if parts == 2 else [m for m in grid if m <= most]


def _error(
    estimator: Callable[..., Tensor], matrix: Matrix, pool: Pool | None, m: int, truth: float, repetitions: int
) -> float:
    """Return the relative root mean square error of a peer's estimator with m products."""
    errors = []
    for seed in range(repetitions):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with _drawing(pool):
                errors.append(float(estimator(matrix, m)) / truth - 1)
    return math.sqrt(sum(e * e for e in errors) / len(errors))


@contextmanager
def _drawing(pool: Pool | None) -> Iterator[None]:
    """Let curvlinops draw its probes out of a pool, without replacement."""
    if pool is None:
        yield
        return
    order = iter(torch.randperm(len(pool)).tolist())

    def draw(*_: object) -> Tensor:
        return pool.probes[next(order)]

    modules = ("curvlinops.trace.meyer2020hutch", "curvlinops.trace.epperly2024xtrace")
    with mock.patch(f"{modules[0]}.random_vector", draw), mock.patch(f"{modules[1]}.random_vector", draw):
        yield


def _crossing(curve: dict[int, float]) -> dict[str, Any]:
    """Return where an error curve crosses the target on log axes; beyond its ends by the slope of all of it."""
    points = [(math.log(m), math.log(max(e, 1e-9))) for m, e in curve.items()]
    goal = math.log(TARGET)
    for (x, y), (u, v) in pairwise(points):
        if y > goal >= v:
            return {"products": math.exp(x + (u - x) * (y - goal) / (y - v)), "how": "interpolated"}
    if points[0][1] <= goal:
        return {"products": math.exp(points[0][0]), "how": "at most"}
    slope = min(-0.5, max(-1.5, _slope(points)))
    return {"products": math.exp(points[-1][0] + (goal - points[-1][1]) / slope), "how": "extrapolated"}


def _slope(points: Sequence[tuple[float, float]]) -> float:
    x, y = (sum(column) / len(points) for column in zip(*points, strict=True))
    return sum((u - x) * (v - y) for u, v in points) / sum((u - x) ** 2 for u, _ in points)
