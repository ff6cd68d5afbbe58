"""The table of methods. Every generic test runs over all rows; a new method is one row here."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import flatmin as fm
from flatmin import ArgumentError, ArgumentTypeError
from flatmin.vectors import Vector
from reference import escape, nso_algorithm1, sam_algorithm1, sam_family

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
_PATTERNS: list[Bad] = [
    ({"sigma": {"*.bias": 0.0}}, ArgumentError, r"sigma has no entry for the parameter '0\.weight'.*last entry"),
    ({"sigma": {"0.wieght": 0.0, "*": 0.1}}, ArgumentError, r"sigma names the parameter '0\.wieght'.*0\.weight"),
    ({"sigma": {"*": -1.0}}, ArgumentError, r"sigma\['\*'\] is -1\.0, but it must be finite and at least 0"),
    ({"sigma": {}}, ArgumentError, "sigma is an empty mapping"),
    ({"sigma": {torch.Tensor: 0.1}}, ArgumentTypeError, r"sigma has the key .*a class of modules"),
    ({"noise_scale": "filters"}, ArgumentError, "noise_scale is 'filters', but .*Did you mean 'filter'"),
    ({"ranks": "share"}, ArgumentError, "ranks is 'share', but .*Did you mean 'shared'"),
]
_SHELL: list[Bad] = [
    ({"buffers": "frist"}, ArgumentError, "buffers is 'frist', but .*Did you mean 'first'"),
    ({"trace_window": -1}, ArgumentError, "trace_window is -1, but it must be at least 0"),
    ({"no_such_option": 1}, TypeError, "no_such_option"),
]


def wrap(cls):
    """How most methods are made: around a base optimizer."""

    def build(base, **arguments):
        return cls(base, **arguments)

    return build


def bsam(base, **arguments):
    """BSAM makes the step itself: it takes the parameters of the base, its learning rate and the radii of groups."""
    own = ("params", "lr", "rho")
    return fm.BSAM([{k: v for k, v in g.items() if k in own} for g in base.param_groups], **{"lr": 0.1, **arguments})


@dataclass(frozen=True, eq=False)
class Method:
    """One row.

    ``radius`` is the argument that is varied, ``off`` what makes the method its base; ``reference(weights, gradient,
    eta=, mu=, steps=, seed=)`` is the literal twin; ``evaluations`` the gradients a step costs, ``at_rest`` those of
    ``off``. ``traces`` says whether it reports the Hessian's trace, ``scale_free`` whether the direction follows the
    scale of the loss exactly, ``wraps`` whether another optimizer makes the step.
    """

    name: str
    cls: type[torch.optim.Optimizer]
    arguments: dict[str, Any]
    flow: Callable[..., Any]
    radius: str | None
    evaluations: int
    linear: bool
    reference: Callable[..., Any]
    off: dict[str, float] | None = None
    at_rest: int = 1
    traces: bool = False
    scale_free: bool = True
    wraps: bool = True
    seeded: bool = True
    build_with: Callable[..., torch.optim.Optimizer] | None = None
    flow_arguments: dict[str, Any] = field(default_factory=dict)
    bad_arguments: list[Bad] = field(default_factory=list)

    def build(self, base, **changes):
        return (self.build_with or wrap(self.cls))(base, **{**self.arguments, **changes})

    def at(self, value):
        """The arguments that set the radius to ``value``; none for a method without."""
        return {} if self.radius is None else {self.radius: value}

    def bound_flow(self):
        noise = {"noise": fm.noise.resolve_law(self.arguments["noise"])} if "noise" in self.arguments else {}
        return functools.partial(self.flow, **(self.flow_arguments or {**self.arguments, **noise}))

    def __str__(self):
        return self.name


def unseeded(train, **settings):
    """A twin that draws nothing."""
    return lambda *args, seed, **kwargs: train(*args, **settings, **kwargs)


_LOCAL: list[Bad] = [({"local_ascents": 1}, TypeError, "local_ascents")]
_ESCAPE: list[Bad] = [
    ({"threshold": 0.0}, ArgumentError, r"threshold is 0\.0, but it must be above 0.*Infinity perturbs always"),
    ({"threshold": "far"}, ArgumentTypeError, "threshold is 'far', which is no number"),
    ({"descent_scale": 0}, ArgumentError, "descent_scale is 0, but it must be above 0"),
]

METHODS = [
    Method(
        name="Plain",
        cls=fm.Plain,
        arguments={},
        flow=fm.flows.sgd,
        radius=None,
        evaluations=1,
        linear=True,
        seeded=False,
        reference=unseeded(nso_algorithm1.train_plain),
        off={},
        bad_arguments=_SHELL,
    ),
    Method(
        name="NSO",
        cls=fm.NSO,
        arguments={"sigma": 0.05},
        flow=fm.flows.nso,
        radius="sigma",
        evaluations=2,
        linear=True,
        traces=True,
        reference=functools.partial(nso_algorithm1.train, sigma=0.05, k=1, law=fm.Gaussian()),
        off={"sigma": 0.0},
        bad_arguments=[
            *_RADIUS["sigma"],
            *_NOISE,
            *_SHELL,
            *_PATTERNS,
            ({"clean_weight": 1.5}, ArgumentError, r"clean_weight is 1\.5, but it is a share"),
            ({"ranks": "antithetic"}, ArgumentError, r"both points of a pair on every rank.*WPSGD"),
        ],
    ),
    Method(
        name="NSO-k3",
        cls=fm.NSO,
        arguments={"sigma": 0.05, "num_perturbations": 3, "noise": "rademacher"},
        flow=fm.flows.nso,
        radius="sigma",
        evaluations=6,
        linear=True,
        traces=True,
        reference=functools.partial(nso_algorithm1.train, sigma=0.05, k=3, law=fm.Rademacher()),
        off={"sigma": 0.0},
    ),
    Method(
        name="NSO-filter",
        cls=fm.NSO,
        arguments={"sigma": 0.05, "noise_scale": "filter"},
        flow=fm.flows.nso,
        radius="sigma",
        evaluations=2,
        linear=True,
        reference=functools.partial(
            nso_algorithm1.train, sigma=0.05, k=1, law=fm.Gaussian(), unit=sam_family.filter_norms
        ),
        off={"sigma": 0.0},
    ),
    Method(
        name="NSO-mixed",
        cls=fm.NSO,
        arguments={"sigma": 0.05, "clean_weight": 0.25},
        flow=fm.flows.nso,
        radius="sigma",
        evaluations=3,
        linear=True,
        traces=True,
        reference=functools.partial(nso_algorithm1.train, sigma=0.05, k=1, law=fm.Gaussian(), clean_weight=0.25),
        off={"sigma": 0.0},
    ),
    Method(
        name="WPSGD",
        cls=fm.WPSGD,
        arguments={"sigma": 0.05, "num_perturbations": 2, "noise": "uniform"},
        flow=fm.flows.wpsgd,
        radius="sigma",
        evaluations=2,
        linear=True,
        traces=True,
        reference=functools.partial(nso_algorithm1.train_one_sided, sigma=0.05, k=2, law=fm.Uniform()),
        off={"sigma": 0.0},
        bad_arguments=[*_RADIUS["sigma"], *_NOISE, *_SHELL, *_PATTERNS],
    ),
    Method(
        name="SAM",
        cls=fm.SAM,
        arguments={"rho": 0.05},
        flow=fm.flows.sam,
        radius="rho",
        evaluations=2,
        linear=False,
        seeded=False,
        reference=unseeded(sam_algorithm1.train, rho=0.05),
        off={"rho": 0.0},
        at_rest=2,
        bad_arguments=[*_RADIUS["rho"], *_SHELL, *_LOCAL],
    ),
    Method(
        name="USAM",
        cls=fm.USAM,
        arguments={"rho": 0.05},
        flow=fm.flows.usam,
        radius="rho",
        evaluations=2,
        linear=False,
        seeded=False,
        scale_free=False,
        reference=unseeded(sam_family.train_unnormalized, rho=0.05),
        off={"rho": 0.0},
        at_rest=2,
        bad_arguments=[*_RADIUS["rho"], *_SHELL],
    ),
    Method(
        name="ASAM",
        cls=fm.ASAM,
        arguments={"rho": 0.5},
        flow=fm.flows.asam,
        radius="rho",
        evaluations=2,
        linear=False,
        seeded=False,
        reference=unseeded(sam_family.train_adaptive, rho=0.5, xi=0.01, is_weight=(True, False, True, False)),
        off={"rho": 0.0},
        at_rest=2,
        bad_arguments=[
            *_RADIUS["rho"],
            *_SHELL,
            ({"eta": -1}, ArgumentError, r"eta is -1, but it must be finite and at least 0"),
            ({"adaptive": {}}, ArgumentError, "adaptive is an empty mapping"),
            ({"adaptive": {3: True}}, ArgumentTypeError, r"adaptive has the key 3.*'\*\.bias'"),
        ],
    ),
    Method(
        name="RSAM",
        cls=fm.RSAM,
        arguments={"rho": 0.05, "sigma": 0.02, "gradient_weight": 0.5},
        flow=fm.flows.rsam,
        radius="rho",
        evaluations=2,
        linear=False,
        scale_free=False,
        reference=functools.partial(sam_family.train_random, rho=0.05, sigma=0.02, lam=0.5),
        off={"rho": 0.0, "sigma": 0.0},
        at_rest=2,
        bad_arguments=[
            *_RADIUS["rho"],
            *_SHELL,
            *_RADIUS["sigma"],
            ({"gradient_weight": -1}, ArgumentError, "gradient_weight is -1, but it must be finite and at least 0"),
        ],
    ),
    Method(
        name="BSAM",
        cls=fm.BSAM,
        arguments={"rho": 0.05, "num_examples": 50, "initial_precision": 0.5, "damping": 0.2, "weight_decay": 0.01},
        flow=fm.flows.bsam,
        radius="rho",
        evaluations=2,
        linear=False,
        scale_free=False,
        wraps=False,
        reference=lambda *args, mu, **kwargs: sam_family.train_bayesian(
            *args, rho=0.05, N=50, beta1=0.9, beta2=0.999, delta=0.01, gamma=0.2, s0=0.5, **kwargs
        ),
        build_with=bsam,
        flow_arguments={
            "rho": 0.05,
            "num_examples": 50,
            "precision": Vector({0: torch.full((5,), 0.5).double(), 1: torch.tensor(2.0).double()}),
        },
        bad_arguments=[
            *_RADIUS["rho"],
            *_SHELL,
            ({"lr": -0.1}, ArgumentError, r"lr is -0\.1, but it must be finite and at least 0"),
            ({"betas": (0.9, 1.0)}, ArgumentError, r"betas\[1\] is 1\.0, but it must lie in \[0, 1\)"),
            ({"betas": 0.9}, ArgumentTypeError, r"betas is 0\.9, but two numbers are needed"),
            ({"num_examples": 0}, ArgumentError, "num_examples is 0, but it must be at least 1"),
            ({"damping": -1}, ArgumentError, "damping is -1"),
            ({"initial_precision": 0}, ArgumentError, "initial_precision is 0, but it must be above 0"),
            ({"weight_decay": float("nan")}, ArgumentError, "weight_decay is nan"),
        ],
    ),
    Method(
        name="RandomlySmoothed",
        cls=fm.RandomlySmoothed,
        arguments={"rho": 0.3},
        flow=fm.flows.randomly_smoothed,
        radius="rho",
        evaluations=2,
        linear=False,
        reference=functools.partial(escape.smoothed, rho=0.3),
        off={"rho": 0.0},
        bad_arguments=[*_RADIUS["rho"], *_SHELL, *_ESCAPE],
    ),
    Method(
        name="SharpnessAware",
        cls=fm.SharpnessAware,
        arguments={"rho": 0.1},
        flow=fm.flows.sharpness_aware,
        radius="rho",
        evaluations=2,
        linear=False,
        reference=functools.partial(escape.sharpness_aware, rho=0.1),
        off={"rho": 0.0},
        bad_arguments=[
            *_RADIUS["rho"],
            *_SHELL,
            *_ESCAPE,
            ({"restart": 0.0}, ArgumentError, r"restart is 0, but it must be above 0"),
        ],
    ),
    Method(
        name="SharpnessAware-exact",
        cls=fm.SharpnessAware,
        arguments={"rho": 0.1, "exact": True, "threshold": 100.0},
        flow=fm.flows.sharpness_aware,
        radius="rho",
        evaluations=3,
        linear=False,
        scale_free=False,
        reference=functools.partial(escape.sharpness_aware, rho=0.1),
        off={"rho": 0.0},
    ),
]


def rows(where=lambda method: True):
    """Parametrize a test over the methods for which ``where`` holds."""
    return pytest.mark.parametrize("method", [m for m in METHODS if where(m)], ids=str)


every_method = rows()
linear_methods = rows(lambda m: m.linear)
noise_methods = rows(lambda m: m.traces)
methods_with_radius = rows(lambda m: m.radius is not None)
methods_that_turn_off = rows(lambda m: m.off is not None)
wrapping_methods = rows(lambda m: m.wraps)
