"""The ways of training that are compared, each driven in its own documented way around the same base optimizer."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import flatmin as fm
from training import written
from training.problems import Instance
from training.written import RADIUS

Step = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One way of training.

    Attributes:
        name: Its name on the page.
        passes: Forward and backward passes of its limit.
        make: Builds it around a network; what it returns makes one step.
        module: What Python has to be able to import; empty if nothing.
        install: How to get that.
    """

    name: str
    passes: int
    make: Callable[[Instance], Step]
    module: str = ""
    install: str = ""

    @property
    def is_there(self) -> bool:
        """Whether it can run here."""
        return not self.module or importlib.util.find_spec(self.module) is not None


def closure_of(optimizer: torch.optim.Optimizer, instance: Instance) -> Callable[[], torch.Tensor]:
    """Return what ``step()`` is given: it clears gradients, runs forward and backward, and returns the loss."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = instance.loss()
        loss.backward()
        return loss

    return closure


def nso(instance: Instance, **options: Any) -> Step:
    """Return NSO by its closure."""
    optimizer = fm.NSO(instance.sgd(), sigma=RADIUS, model=instance.model, **options)
    return functools.partial(optimizer.step, closure_of(optimizer, instance))


def probes(instance: Instance, model: nn.Module | None = None, **options: Any) -> Step:
    """Return NSO by its loop over probes, around ``model`` if the network is wrapped."""
    optimizer = fm.NSO(instance.sgd(), sigma=RADIUS, model=model or instance.model, **options)

    def step() -> None:
        optimizer.zero_grad()
        for probe in optimizer.probes():
            with probe:
                instance.backward()
        optimizer.step()

    return step


def _sam(instance: Instance) -> Step:
    optimizer = fm.SAM(instance.sgd(), rho=RADIUS, model=instance.model)
    return functools.partial(optimizer.step, closure_of(optimizer, instance))


def _attach(instance: Instance, **options: Any) -> Step:
    base = instance.sgd()
    fm.attach(instance.model, base, sigma=RADIUS, **options)

    def step() -> None:
        base.zero_grad()
        instance.backward()
        base.step()

    return step


def _kozistr_sam(instance: Instance) -> Step:
    from pytorch_optimizer import SAM  # noqa: PLC0415

    optimizer = SAM(instance.model.parameters(), torch.optim.SGD, rho=RADIUS, lr=1e-5, momentum=0.9)

    def step() -> None:
        instance.backward()
        optimizer.first_step(zero_grad=True)
        instance.backward()
        optimizer.second_step(zero_grad=True)

    return step


def _ivon(instance: Instance) -> Step:
    from ivon import IVON  # noqa: PLC0415

    optimizer = IVON(instance.model.parameters(), lr=1e-5, ess=1e6)

    def step() -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            instance.backward()
        optimizer.step()

    return step


OURS: tuple[Case, ...] = (
    Case("flatmin NSO, gaussian", 2, nso),
    Case("flatmin NSO, gaussian, probes()", 2, probes),
    Case("flatmin NSO, gaussian, no live trace", 2, functools.partial(nso, trace_window=0)),
    Case("flatmin NSO, rademacher", 2, functools.partial(nso, noise="rademacher")),
    Case("flatmin NSO, rademacher, probes()", 2, functools.partial(probes, noise="rademacher")),
    Case("flatmin SAM", 2, _sam),
    Case("flatmin attach, gaussian", 1, _attach),
    Case("flatmin attach, rademacher", 1, functools.partial(_attach, noise="rademacher")),
)
PEERS: tuple[Case, ...] = (
    Case("NSO as its authors describe it: three passes", 2, written.three_passes),
    Case("SAM in two calls, from its paper", 2, written.two_calls),
    Case("pytorch_optimizer SAM", 2, _kozistr_sam, "pytorch_optimizer", "pip install --no-deps pytorch_optimizer"),
    Case("IVON, one sample", 1, _ivon, "ivon", "pip install --no-deps ivon-opt"),
)
CASES: tuple[Case, ...] = (*OURS, *PEERS)


def named(names: Sequence[str]) -> tuple[Case, ...]:
    """Return the cases whose names contain one of ``names``; all for none."""
    return tuple(case for case in CASES if not names or any(name in case.name for name in names))
