"""The table of methods. Every generic test runs over all rows; a new method is one row here."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import flatmin as fm
from flatmin import ArgumentError, ArgumentTypeError
from reference import nso_algorithm1, sam_algorithm1

Bad = tuple[dict[str, Any], type[Exception], str]

_RADIUS: dict[str, list[Bad]] = {
    name: [
        ({name: -0.1}, ArgumentError, rf"{name} is -0\.1, but it must be finite and at least 0"),
        ({name: float("nan")}, ArgumentError, rf"{name} is nan, but it must be finite"),
        ({name: float("inf")}, ArgumentError, rf"{name} is inf, but it must be finite"),
        ({name: "0.1"}, ArgumentTypeError, rf"{name} is '0.1', which is no number"),
        ({name: True}, ArgumentTypeError, rf"{name} is True, which is no number"),
        ({name: lambda step: -1.0}, ArgumentError, rf"{name} at step 0 is -1\.0.*schedule"),
    ]
    for name in ("sigma", "rho")
}
_NOISE: list[Bad] = [
    ({"noise": "gausian"}, ArgumentError, "noise is 'gausian', but .*Did you mean 'gaussian'"),
    ({"noise": "cauchy"}, ArgumentError, "cauchy.*neither mean nor variance"),
    ({"noise": fm.Gaussian}, ArgumentTypeError, "neither the name of a law nor"),
    ({"num_perturbations": 0}, ArgumentError, "num_perturbations is 0, but it must be at least 1"),
    ({"num_perturbations": 1.5}, ArgumentTypeError, r"num_perturbations is 1\.5, which is no whole number"),
    ({"seed": -1}, ArgumentError, "seed is -1, but it must be at least 0"),
]
_SHELL: list[Bad] = [
    ({"buffers": "frist"}, ArgumentError, "buffers is 'frist', but .*Did you mean 'first'"),
    ({"trace_window": -1}, ArgumentError, "trace_window is -1, but it must be at least 0"),
    ({"no_such_option": 1}, TypeError, "no_such_option"),
]


@dataclass(frozen=True)
class Method:
    """One row.

    ``radius`` is the argument that 0 turns off; ``reference(weights, gradient, eta=, mu=, steps=, seed=)`` is the
    literal twin; ``evaluations`` the gradients a step costs, ``at_rest`` those at radius 0.
    """

    name: str
    cls: Callable[..., torch.optim.Optimizer]
    arguments: dict[str, Any]
    flow: Callable[..., Any]
    radius: str
    evaluations: int
    at_rest: int
    linear: bool
    reference: Callable[..., Any]
    bad_arguments: list[Bad] = field(default_factory=list)

    def build(self, base, **changes):
        return self.cls(base, **{**self.arguments, **changes})

    def bound_flow(self):
        noise = {"noise": fm.noise.resolve_law(self.arguments["noise"])} if "noise" in self.arguments else {}
        return functools.partial(self.flow, **{**self.arguments, **noise})

    def __str__(self):
        return self.name


METHODS = [
    Method(
        name="NSO",
        cls=fm.NSO,
        arguments={"sigma": 0.05},
        flow=fm.flows.nso,
        radius="sigma",
        evaluations=2,
        at_rest=1,
        linear=True,
        reference=functools.partial(nso_algorithm1.train, sigma=0.05, k=1, law=fm.Gaussian()),
        bad_arguments=[
            *_RADIUS["sigma"],
            *_NOISE,
            *_SHELL,
            ({"clean_weight": 1.5}, ArgumentError, r"clean_weight is 1\.5, but it is a share"),
        ],
    ),
    Method(
        name="NSO-k3",
        cls=fm.NSO,
        arguments={"sigma": 0.05, "num_perturbations": 3, "noise": "rademacher"},
        flow=fm.flows.nso,
        radius="sigma",
        evaluations=6,
        at_rest=1,
        linear=True,
        reference=functools.partial(nso_algorithm1.train, sigma=0.05, k=3, law=fm.Rademacher()),
    ),
    Method(
        name="WPSGD",
        cls=fm.WPSGD,
        arguments={"sigma": 0.05, "num_perturbations": 2, "noise": "uniform"},
        flow=fm.flows.wpsgd,
        radius="sigma",
        evaluations=2,
        at_rest=1,
        linear=True,
        reference=functools.partial(nso_algorithm1.train_one_sided, sigma=0.05, k=2, law=fm.Uniform()),
        bad_arguments=[*_RADIUS["sigma"], *_NOISE, *_SHELL],
    ),
    Method(
        name="SAM",
        cls=fm.SAM,
        arguments={"rho": 0.05},
        flow=fm.flows.sam,
        radius="rho",
        evaluations=2,
        at_rest=2,
        linear=False,
        reference=lambda *args, seed, **kwargs: sam_algorithm1.train(*args, rho=0.05, **kwargs),
        bad_arguments=[*_RADIUS["rho"], *_SHELL],
    ),
]

every_method = pytest.mark.parametrize("method", METHODS, ids=str)
linear_methods = pytest.mark.parametrize("method", [m for m in METHODS if m.linear], ids=str)
