"""Timing: every step stands beside its limit, run right before or after it, and is told as their ratio."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from curvature.machine import load

from training.cases import Case
from training.problems import Instance, Problem

WARM_UP = 1


def interleaved(
    problem: Problem, cases: Sequence[Case], device: torch.device, *, rounds: int, compiled: bool = False
) -> dict[str, Any]:
    """Time cases in turns.

    Args:
        problem: What is trained.
        cases: How.
        device: Where.
        rounds: How often each is timed, after a round that is not.
        compiled: Whether the network is compiled with CUDA graphs.

    Returns:
        The number of parameters and, for each case, its passes, its ratios to the limit, and the seconds of both.
    """
    limit = Instance(problem, device, compiled=compiled)
    limits = {passes: limit.ideal(passes) for passes in sorted({case.passes for case in cases})}
    instances = {case.name: Instance(problem, device, compiled=compiled) for case in cases}
    steps = {case.name: case.make(instances[case.name]) for case in cases}
    found = {case.name: {"passes": case.passes, "seconds": [], "limit_seconds": []} for case in cases}
    loads = []
    for number in range(WARM_UP + rounds):
        gc.collect()
        for place, case in enumerate(cases):
            pair = [("seconds", steps[case.name]), ("limit_seconds", limits[case.passes])]
            for what, step in pair if (number + place) % 2 else reversed(pair):
                seconds = timed(step, limit)
                if number >= WARM_UP:
                    found[case.name][what].append(round(seconds, 6))
        loads.append(load())
    for row in found.values():
        row["ratios"] = [round(a / b, 4) for a, b in zip(row["seconds"], row["limit_seconds"], strict=True)]
    return {"parameters": limit.size, "load": [min(loads), max(loads)], "cases": found}


def timed(step: Callable[[], Any], instance: Instance) -> float:
    """Return the seconds of one step, device included."""
    instance.wait()
    start = time.perf_counter()
    step()
    instance.wait()
    return time.perf_counter() - start
