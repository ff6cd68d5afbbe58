"""Timing: every run stands between two timings of the gradient of the same data, and is told in units of that."""

from __future__ import annotations

import gc
import time
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch

from curvature.case import Case, Outcome
from curvature.machine import load
from curvature.problems import Problem

_LONG_ENOUGH = 0.05  # seconds of gradients on each side of a run


def gradient_seconds(problem: Problem) -> float:
    """Return what one gradient takes, forward and backward: the median of several, or one where that is long."""
    times: list[float] = []
    while sum(times) < _LONG_ENOUGH:
        start = time.perf_counter()
        torch.autograd.grad(problem.loss(), problem.parameters)
        times.append(time.perf_counter() - start)
    return median(times)


def timed(case: Case, problem: Problem, effort: Any, seed: int, lock: AbstractContextManager) -> dict[str, Any]:
    """Run a case once.

    Returns:
        ``setup`` and ``run`` in gradients of the same minute, their ``seconds``, the ``gradient`` in seconds, what came
        out, and how many processes wanted a processor.
    """
    gc.collect()
    with lock:
        before = gradient_seconds(problem)
        start = time.perf_counter()
        state = case.prepare(problem)
        ready = time.perf_counter()
        outcome: Outcome = case.run(state, effort, seed)
        end = time.perf_counter()
        after = gradient_seconds(problem)
    gradient = (before + after) / 2
    return {
        "effort": effort,
        "seed": seed,
        "setup": (ready - start) / gradient,
        "run": (end - ready) / gradient,
        "seconds": end - start,
        "gradient": gradient,
        "products": outcome.products,
        "counted": outcome.gradients,
        "values": list(outcome.values),
        "note": outcome.note,
        "load": load(),
    }
