"""The settings of a method as a dataclass, for command lines and configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from flatmin.checks import choice
from flatmin.errors import ArgumentError
from flatmin.optim import ASAM, NSO, RSAM, SAM, USAM, WPSGD, Perturbed, attach

_CALLS: dict[str, Callable[..., Any]] = {
    "nso": NSO, "wpsgd": WPSGD, "sam": SAM, "usam": USAM, "asam": ASAM, "rsam": RSAM, "attach": attach,
}  # fmt: skip
_ITS_OWN_NAME = {"perturbation_seed": "seed"}  # the frameworks have a seed of theirs


def _help(text: str) -> Any:
    return field(default=None, metadata={"help": text})


@dataclass
class FlatMinimaArguments:
    """Which method trains, and how; what is left None has the method's own default.

    A plain dataclass: ``HfArgumentParser((TrainingArguments, FlatMinimaArguments))`` reads it from a command line or a
    file. Radii that are schedules or mappings from parameter names are code: pass those to a method in
    ``Trainer(optimizers=...)``.

    Attributes:
        method: The method; ``attach`` is NSO's noise with its two points on successive micro-batches, at the price of
            the base optimizer.
        sigma: Standard deviation of the weight noise, in the units of the weights (see ``noise_scale``).
        rho: Length of the ascent step of the SAM family, in the units of the weights.
        num_perturbations: Number of noise draws a step; NSO evaluates two gradients for each, WP-SGD one.
        noise: Law of the noise: gaussian, laplace, uniform, rademacher, binomial.
        noise_scale: Unit of sigma: absolute, or the norm of each parameter or filter.
        clean_weight: Share of the gradient at the weights themselves (NSO), between 0 and 1.
        eta: ASAM's η.
        gradient_weight: RSAM's λ.
        ranks: Whether ranks draw shared, independent or antithetic noise.
        local_ascent: Under DistributedDataParallel each rank climbs its own gradient (SAM family).
        perturbation_seed: Seed of the noise.
        check_finite: Refuse NaN and infinity; None: on a CPU only.
        trace_window: Number of steps that the live trace looks back; 0 turns it off.

    Raises:
        ArgumentError: A value that cannot work, that the method does not have, or that it needs and was not given.
        ArgumentTypeError: A value of the wrong kind.

    Example:
        >>> arguments = FlatMinimaArguments(method="nso", sigma=0.01, num_perturbations=2)
        >>> base = torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1)
        >>> type(arguments.around(base)).__name__
        'NSO'
    """

    method: Literal["nso", "wpsgd", "sam", "usam", "asam", "rsam", "attach"] = field(
        default="nso", metadata={"help": "The method. attach: NSO's two points on successive micro-batches."}
    )
    sigma: float | None = _help("Standard deviation of the weight noise.")
    rho: float | None = _help("Length of the ascent step of the SAM family.")
    num_perturbations: int | None = _help("Number of noise draws a step.")
    noise: str | None = _help("Law of the noise: gaussian, laplace, uniform, rademacher, binomial.")
    noise_scale: str | None = _help("Unit of sigma: absolute, parameter, filter.")
    clean_weight: float | None = _help("Share of the gradient at the weights themselves (nso).")
    eta: float | None = _help("ASAM's eta.")
    gradient_weight: float | None = _help("RSAM's lambda.")
    ranks: str | None = _help("Whether ranks draw shared, independent or antithetic noise.")
    local_ascent: bool | None = _help("Each rank climbs its own gradient (SAM family, DDP).")
    perturbation_seed: int | None = _help("Seed of the noise.")
    check_finite: bool | None = _help("Refuse NaN and infinity; by default on a CPU only.")
    trace_window: int | None = _help("Number of steps that the live trace looks back; 0 turns it off.")

    def __post_init__(self) -> None:
        choice("method", self.method, _CALLS)
        self._require_fitting()
        # The methods check their values themselves: now, and not when the data has been loaded.
        model = nn.Linear(1, 1)
        self._call(model, torch.optim.SGD(model.parameters(), lr=0.0))

    @property
    def attaches(self) -> bool:
        """Whether the points fall on successive micro-batches (``attach``)."""
        return self.method == "attach"

    def given(self) -> dict[str, Any]:
        """Return the method's own settings that were given, by the names that it has for them."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "method"}
        return {_ITS_OWN_NAME.get(name, name): value for name, value in values.items() if value is not None}

    def around(self, base: Optimizer, model: nn.Module | None = None) -> Perturbed:
        """Return the method around ``base``.

        Args:
            base: The optimizer that makes the step.
            model: The model, if its modules should not be looked up.

        Raises:
            ArgumentError: The method is ``attach``, which goes around nothing.
        """
        if self.attaches:
            raise ArgumentError(
                "method is 'attach', which works by hooks and goes around no optimizer. Call "
                "flatmin.attach(model, optimizer, **arguments.given())."
            )
        return self._call(model, base)

    def _call(self, model: nn.Module | None, optimizer: Optimizer) -> Any:
        call, given = _CALLS[self.method], self.given()
        return call(model, optimizer, **given) if self.attaches else call(optimizer, model=model, **given)

    def _require_fitting(self) -> None:
        known = inspect.signature(_CALLS[self.method]).parameters
        takes = [] if self.attaches else ["check_finite", "trace_window"]  # which classes take among **options
        takes += [item.name for item in fields(self) if _ITS_OWN_NAME.get(item.name, item.name) in known]
        for item in fields(self):
            value, own = getattr(self, item.name), known.get(item.name)
            if value is not None and item.name not in ("method", *takes):
                raise ArgumentError(
                    f"{item.name} is {value!r}, but method {self.method!r} has no such setting. It takes "
                    f"{', '.join(takes)}. Leave it out, or choose another method."
                )
            if value is None and own is not None and own.default is inspect.Parameter.empty:
                raise ArgumentError(
                    f"{item.name} is not given, and method {self.method!r} needs it. Pass {item.name}=0.05, or "
                    f"--{item.name} 0.05; docs/choosing-sigma.md says how to choose."
                )
