"""The registry of methods as the laboratory compares them: what is tuned, over which grid, and what a step costs.

Importing this file does not load torch, so that the command line can name the methods at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.optim import Optimizer

Builder = Callable[["Optimizer", float | None, int], "Optimizer"]


@dataclass(frozen=True)
class Method:
    """A way to turn gradients into steps.

    Attributes:
        name: As on the command line.
        label: As in tables and figures.
        hyperparameter: What is chosen on the validation split; None where there is nothing to choose.
        grid: The values tried, as many for each method.
        evaluations_per_step: Gradient evaluations that one step costs.
        build: The optimizer from the base optimizer, the hyperparameter's value and the seed of its noise.
    """

    name: str
    label: str
    hyperparameter: Literal["sigma", "rho"] | None
    grid: tuple[float, ...]
    evaluations_per_step: int
    build: Builder


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


def _sgd(base: Optimizer, value: float | None, seed: int) -> Optimizer:  # noqa: ARG001  (the builders' signature)
    return base


def _wpsgd(base: Optimizer, value: float | None, seed: int) -> Optimizer:
    import flatmin as fm

    # Two independent one-sided draws a step: as many gradient evaluations as NSO's one pair, the compute-matched
    # baseline of Zhang, Li, Ju (arXiv:2306.08553).
    return fm.WPSGD(base, sigma=_given(value), num_perturbations=2, seed=seed)


def _nso(base: Optimizer, value: float | None, seed: int) -> Optimizer:
    import flatmin as fm

    return fm.NSO(base, sigma=_given(value), num_perturbations=1, seed=seed)


def _sam(base: Optimizer, value: float | None, seed: int) -> Optimizer:  # noqa: ARG001  (SAM draws no noise)
    import flatmin as fm

    return fm.SAM(base, rho=_given(value))


def _given(value: float | None) -> float:
    if value is None:
        from flatmin.errors import ArgumentError

        raise ArgumentError("value is None, but this method needs its sigma or rho. Take one from its grid.")
    return value


_SIGMAS = (0.02, 0.05, 0.1, 0.15)
_RHOS = (0.1, 0.2, 0.5, 1.0)

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("sgd", "SGD", None, (), 1, _sgd),
        Method("wpsgd", "WP-SGD", "sigma", _SIGMAS, 2, _wpsgd),
        Method("nso", "NSO", "sigma", _SIGMAS, 2, _nso),
        Method("sam", "SAM", "rho", _RHOS, 2, _sam),
    )
}
