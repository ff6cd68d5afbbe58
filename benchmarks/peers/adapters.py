"""The optimizers of the matrix: how each is built, and which way of stepping is its own."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from peers import drive, scaling

RADIUS = 0.05
NUM_DATA = 400  # the noise of IVON, 1 / sqrt(NUM_DATA * (hessian + decay)), is RADIUS at first


@dataclasses.dataclass(frozen=True)
class Spec:
    """What to build: a base optimizer with options; ``off`` sets the radius to 0, ``quiet`` random noise only."""

    base: type[Optimizer]
    options: dict[str, Any]
    off: bool
    quiet: bool

    @property
    def radius(self) -> float:
        """The radius asked for."""
        return 0.0 if self.off else RADIUS


@dataclasses.dataclass(frozen=True)
class Peer:
    """One optimizer.

    Args:
        name: Its name in the table.
        distribution: What pip installs.
        module: What Python imports.
        make: Builds it: ``make(module, model, spec)``.
        step: One step of its documented loop; see :mod:`peers.drive`.
        accumulate: One step from micro-batches, each seen once.
        scaled: One step under a ``GradScaler`` in the usual pattern; see :mod:`peers.scaling`.
        by_hand: One step under a ``GradScaler`` in the best way known.
        evaluations: Gradients that a step costs by the method's paper.
        driven: The documented loop in words.
        passes: Of these gradients, how many belong to different weights.
        base: Whether it wraps a base optimizer.
        noise: Whether its displacement is random.
    """

    name: str
    distribution: str
    module: str
    make: Callable[[Any, nn.Module, Spec], Optimizer]
    step: Callable[..., Any]
    accumulate: Callable[..., None]
    scaled: Callable[..., None]
    by_hand: Callable[..., None]
    evaluations: float
    driven: str
    passes: int = 2
    base: bool = True
    noise: bool = False

    def version(self) -> str | None:
        """Return the installed version, or None."""
        try:
            module = importlib.import_module(self.module)
        except ImportError:
            return None
        return getattr(module, "__version__", None) or metadata.version(self.distribution)

    def build(
        self, model: nn.Module, base: type[Optimizer] = SGD, *, off: bool = False, quiet: bool = False, **options: Any
    ) -> Any:
        """Build it around a new base optimizer; the learning rate is 0.1 unless ``options`` say otherwise."""
        spec = Spec(base, {"lr": 0.1, **options}, off, quiet)
        return self.make(importlib.import_module(self.module), model, spec)

    def inner(self, opt: Any) -> Optimizer:
        """Return the optimizer that makes the step."""
        return getattr(opt, "base_optimizer", None) or getattr(opt, "base", None) or opt


def _sam(lib: Any, model: nn.Module, spec: Spec, *, cls: str, **own: Any) -> Optimizer:
    return getattr(lib, cls)(model.parameters(), spec.base, rho=spec.radius, **own, **spec.options)


def _plain(lib: Any, model: nn.Module, spec: Spec) -> Optimizer:  # noqa: ARG001  (torch is not looked up)
    return spec.base(model.parameters(), **spec.options)


def _wsam(lib: Any, model: nn.Module, spec: Spec) -> Optimizer:
    return lib.WSAM(model, model.parameters(), spec.base, rho=spec.radius, **spec.options)


def _gsam(lib: Any, model: nn.Module, spec: Spec) -> Optimizer:
    base = spec.base(model.parameters(), **spec.options)
    constant = torch.optim.lr_scheduler.LambdaLR(base, lambda _: 1.0)
    schedule = lib.ProportionScheduler(constant, max_lr=0.0, max_value=spec.radius, min_value=spec.radius)
    return lib.GSAM(model.parameters(), base, model, schedule, alpha=0.0 if spec.off else 0.4)


def _bsam(lib: Any, model: nn.Module, spec: Spec) -> Optimizer:
    num_data = 1e300 if spec.quiet else NUM_DATA
    return lib.BSAM(model.parameters(), num_data=num_data, lr=spec.options["lr"], rho=spec.radius)


def _ivon(lib: Any, model: nn.Module, spec: Spec) -> Optimizer:
    # Without noise, momentum and decay, and with a Hessian that stays at 1, IVON is plain gradient descent.
    still = {"ess": 1e30, "beta1": 0.0, "beta2": 1.0, "weight_decay": 0.0}
    own = still if spec.quiet else {"ess": float(NUM_DATA)}
    return lib.IVON(model.parameters(), lr=spec.options["lr"], sync=torch.distributed.is_initialized(), **own)


def _ours(lib: Any, model: nn.Module, spec: Spec, *, cls: str, radius: str) -> Optimizer:
    return getattr(lib, cls)(spec.base(model.parameters(), **spec.options), **{radius: spec.radius})


_kozistr = functools.partial(
    Peer,
    distribution="pytorch_optimizer",
    module="pytorch_optimizer",
    step=drive.step_after_backward,
    accumulate=drive.accumulate_after_backward,
    scaled=scaling.scaled,
    by_hand=scaling.by_hand_after_backward,
    evaluations=2,
    driven="`zero_grad(); closure(); step(closure)`, as its docstring has it",
)
_flatmin = functools.partial(
    Peer,
    distribution="flatmin",
    module="flatmin",
    step=drive.step,
    accumulate=drive.accumulate_probes,
    scaled=scaling.scaled_probes,
    by_hand=scaling.by_hand_probes,
    driven="`step(closure)`; loops with their own backward pass by `probes()`",
)

PEERS: tuple[Peer, ...] = (
    Peer(
        "SGD",
        distribution="torch",
        module="torch",
        make=_plain,
        step=drive.step,
        accumulate=drive.accumulate_plain,
        scaled=scaling.scaled_plain,
        by_hand=scaling.by_hand_plain,
        evaluations=1,
        passes=1,
        driven="`step(closure)`: the base optimizer alone (AdamW where a row says so)",
    ),
    _kozistr("SAM", make=functools.partial(_sam, cls="SAM")),
    _kozistr("ASAM", make=functools.partial(_sam, cls="SAM", adaptive=True)),
    _kozistr("FriendlySAM", make=functools.partial(_sam, cls="FriendlySAM")),
    _kozistr("LookSAM", make=functools.partial(_sam, cls="LookSAM", k=5), evaluations=1.2),
    _kozistr(
        "GSAM",
        make=_gsam,
        step=drive.step_pair,
        accumulate=drive.accumulate_pair,
        scaled=scaling.scaled_pair,
        by_hand=scaling.by_hand_pair,
        driven="`step()` with what `set_closure()` makes: a closure that clears, runs under `enable_grad` and returns "
        "outputs and loss; constant rho",
    ),
    _kozistr(
        "WSAM",
        make=_wsam,
        step=drive.step,
        accumulate=drive.accumulate_two_steps,
        by_hand=scaling.by_hand,
        driven="`step(closure)`; micro-batches by `first_step()`, `second_step()`",
    ),
    _kozistr(
        "BSAM",
        make=_bsam,
        base=False,
        noise=True,
        driven="`zero_grad(); closure(); step(closure)`, the loop of its relatives: its docstring shows none, and it "
        "does not start without a backward pass first",
    ),
    Peer(
        "IVON",
        distribution="ivon-opt",
        module="ivon",
        make=_ivon,
        step=drive.step_sampled,
        accumulate=drive.accumulate_sampled,
        scaled=scaling.scaled_sampled,
        by_hand=scaling.by_hand_sampled,
        evaluations=1,
        passes=1,
        base=False,
        noise=True,
        driven="`with sampled_params(train=True):` around the closure, then `step()`, as its README has it; on ranks "
        "with `sync=True`",
    ),
    _flatmin("fm.SAM", make=functools.partial(_ours, cls="SAM", radius="rho"), evaluations=2),
    _flatmin("fm.NSO", make=functools.partial(_ours, cls="NSO", radius="sigma"), evaluations=2, noise=True),
    _flatmin(
        "fm.WPSGD", make=functools.partial(_ours, cls="WPSGD", radius="sigma"), evaluations=1, passes=1, noise=True
    ),
)
INSTALL = {"pytorch_optimizer": "pip install --no-deps pytorch_optimizer", "ivon-opt": "pip install --no-deps ivon-opt"}
