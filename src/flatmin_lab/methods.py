"""The registry of methods as the laboratory compares them: what is tuned, over which grid, and what a step costs.

Importing this file does not load torch, so that the command line can name the methods at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Ingredients:
    """What a method is made of in one run.

    Attributes:
        base: The base optimizer, with the task's setting.
        model: Whose parameters it has; methods need not look for it.
        value: The hyperparameter's value; None for a method that has none.
        seed: Of the method's noise.
        num_examples: To train on.
    """

    base: Optimizer
    model: nn.Module
    value: float | None
    seed: int
    num_examples: int

    @property
    def radius(self) -> float:
        """The value, of a method that needs one.

        Raises:
            ArgumentError: There is none.
        """
        return _given(self.value)


def _plain(value: float | None) -> Loss:
    from torch.nn import functional

    del value
    return functional.cross_entropy


@dataclass(frozen=True)
class Method:
    """A way to turn gradients into steps.

    Attributes:
        name: As on the command line.
        label: As in tables and figures.
        hyperparameter: What is chosen on the validation split; None where there is nothing to choose.
        grid: The values tried unless a task has its own, as many for each method.
        evaluations_per_step: Gradient evaluations that one step costs.
        build: The optimizer of a run.
        loss: What is minimised, given the hyperparameter's value. Runs are scored by plain cross-entropy.
    """

    name: str
    label: str
    hyperparameter: Literal["sigma", "rho", "alpha"] | None
    grid: tuple[float, ...]
    evaluations_per_step: int
    build: Callable[[Ingredients], Optimizer]
    loss: Callable[[float | None], Loss] = _plain


def method(name: str) -> Method:
    """Look up a method by its name.

    Args:
        name: One of `METHODS`.

    Returns:
        The method.

    Raises:
        ArgumentError: No method has this name; the message lists those there are and the nearest one.
    """
    from flatmin.checks import choice

    return METHODS[choice("method", name, METHODS)]


def _sgd(given: Ingredients) -> Optimizer:
    return given.base


def _smoothed(value: float | None) -> Loss:
    import functools

    from torch.nn import functional

    return functools.partial(functional.cross_entropy, label_smoothing=_given(value))


def _wpsgd(given: Ingredients) -> Optimizer:
    import flatmin as fm

    # Two independent one-sided draws a step: as many gradient evaluations as NSO's one pair, the compute-matched
    # baseline of Zhang, Li, Ju (arXiv:2306.08553).
    return fm.WPSGD(given.base, sigma=given.radius, num_perturbations=2, seed=given.seed, model=given.model)


def _nso(given: Ingredients) -> Optimizer:
    import flatmin as fm

    return fm.NSO(given.base, sigma=given.radius, num_perturbations=1, seed=given.seed, model=given.model)


def _ascent(name: str) -> Callable[[Ingredients], Optimizer]:
    def build(given: Ingredients) -> Optimizer:
        import flatmin as fm

        return getattr(fm, name)(given.base, rho=given.radius, model=given.model)

    return build


def _rsam(given: Ingredients) -> Optimizer:
    import flatmin as fm

    # One of two radii is tuned, as for every other method; sigma is the middle of the NSO paper's grid.
    return fm.RSAM(given.base, rho=given.radius, sigma=0.01, seed=given.seed, model=given.model)


def _bsam(given: Ingredients) -> Optimizer:
    import flatmin as fm

    # It has an update rule of its own, with momentum as a mean of gradients instead of a sum, and with steps over the
    # precision s, which starts at 1: with this learning rate its first steps are as long as the base optimizer's.
    (group,) = given.base.param_groups
    return fm.BSAM(
        group["params"],
        lr=group["lr"] / (1 - group["momentum"]),
        rho=given.radius,
        num_examples=given.num_examples,
        betas=(group["momentum"], 0.999),
        weight_decay=group["weight_decay"],
        seed=given.seed,
        model=given.model,
    )


def _given(value: float | None) -> float:
    if value is None:
        from flatmin.errors import ArgumentError

        raise ArgumentError("value is None, but this method needs its sigma, rho or alpha. Take one from its grid.")
    return value


_SIGMAS = (0.02, 0.05, 0.1, 0.15)
_RHOS = (0.1, 0.2, 0.5, 1.0)

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("sgd", "SGD", None, (), 1, _sgd),
        Method("wpsgd", "WP-SGD", "sigma", _SIGMAS, 2, _wpsgd),
        Method("nso", "NSO", "sigma", _SIGMAS, 2, _nso),
        Method("sam", "SAM", "rho", _RHOS, 2, _ascent("SAM")),
        Method("ls", "Label smoothing", "alpha", (0.1, 0.2, 0.3, 0.4), 1, _sgd, _smoothed),
        Method("usam", "USAM", "rho", _RHOS, 2, _ascent("USAM")),
        Method("asam", "ASAM", "rho", (0.2, 0.5, 1.0, 2.0), 2, _ascent("ASAM")),
        Method("rsam", "RSAM", "rho", _RHOS, 2, _rsam),
        Method("bsam", "BSAM", "rho", (0.01, 0.02, 0.05, 0.1), 2, _bsam),
    )
}

MAIN = ("sgd", "wpsgd", "nso", "sam")
"""Those that are compared if nothing else is said."""
