"""Where the time of one step goes: a clock around each of the engine's stages, set from outside of the library."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flatmin.optim.guards import FiniteCheck
from flatmin.perturb import Buffers, Displacer, RandomState, Snapshots
from flatmin.perturb import gradients as grads
from training.cases import Case
from training.problems import Instance, Problem

STAGES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "copy the weights": (Snapshots, ("take",)),
    "draw the noise and add it": (Displacer, ("_add",)),
    "inner products, mirror image, restoring": (Displacer, ("alignments", "reflect", "restore")),
    "add up and scale the gradients": (grads, ("put_back", "rescale", "take", "drop")),
    "look for NaN": (FiniteCheck, ("gradients", "loss")),
    "buffers": (Buffers, ("after_evaluation",)),
    "random states": (RandomState, ("capture", "restore")),
}
PASSES, BASE = "forward and backward", "step of the base"


class Clock:
    """Adds up what each stage takes, without what stages inside of it take.

    Args:
        wait: Waits for the device, so that what was asked of it is counted where it was asked.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._wait = wait

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        self._wait()
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            took = time.perf_counter() - start
            self.seconds[name] += took - self._inner.pop()
            self._inner[-1] += took

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return ``function`` with a clock around it."""

        @functools.wraps(function)
        def counted(*arguments: Any, **keywords: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **keywords)

        return counted


def shares(problem: Problem, case: Case, device: torch.device, *, steps: int) -> dict[str, float]:
    """Return the milliseconds of each stage in one step (the mean of several), and of the limit."""
    instance = Instance(problem, device)
    clock = Clock(instance.wait)
    limit, step = Instance(problem, device).ideal(case.passes), case.make(instance)
    for _ in range(2):
        limit(), step()
    totals = {"the limit": 0.0, "the step": 0.0}
    for _ in range(steps):
        with clock.stage("limit"):
            limit()
        totals["the limit"] += clock.seconds.pop("limit")
        with _clocks(clock), clock.stage("everything else"):
            step()
    totals["the step"] = sum(clock.seconds.values())
    return {name: round(seconds / steps * 1e3, 3) for name, seconds in (totals | clock.seconds).items()}


@contextmanager
def _clocks(clock: Clock) -> Iterator[None]:
    places = [(owner, name, label) for label, (owner, names) in STAGES.items() for name in names]
    places += [(Instance, "loss", PASSES), (torch.Tensor, "backward", PASSES), (torch.optim.SGD, "step", BASE)]
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
    for owner, name, label in places:
        found = owner.__dict__[name]
        if isinstance(found, classmethod):
            setattr(owner, name, classmethod(clock.around(found.__func__, label)))
        else:
            setattr(owner, name, clock.around(found, label))
    try:
        yield
    finally:
        for owner, name, found in before:
            setattr(owner, name, found)
