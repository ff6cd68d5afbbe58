"""The registry of methods as the laboratory compares them: what is tuned, over which grid, and what a step costs.

Importing this file does not load torch, so that the command line can name the methods at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from flatmin.optim.attach import Attachment

    Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Ingredients:
    """What a method is made of in one run.

    Attributes:
        base: The base optimizer, with the task's setting.
        model: Whose parameters it has; methods need not look for it.
        value: The hyperparameter's value; None for a method that has none.
        seed: Of the method's noise.
        num_examples: To train on.
        num_steps: Of the run.
    """

    base: Optimizer
    model: nn.Module
    value: float | None
    seed: int
    num_examples: int
    num_steps: int

    @property
    def radius(self) -> float:
        """The value, of a method that needs one.

        Raises:
            ArgumentError: There is none.
        """
        return _given(self.value)


def _plain(loss: Loss, value: float | None) -> Loss:
    del value
    return loss


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
        loss: What is minimised, given the task's loss and the hyperparameter's value. Runs are scored by the former.
        micro_batches: Into how many a batch is dealt, whose gradients accumulate: one gradient evaluation in all.
        attach: What hooks itself to the model and the optimizer, where the method is not an optimizer itself.
    """

    name: str
    label: str
    hyperparameter: Literal["sigma", "rho", "alpha"] | None
    grid: tuple[float, ...]
    evaluations_per_step: int
    build: Callable[[Ingredients], Optimizer]
    loss: Callable[[Loss, float | None], Loss] = _plain
    micro_batches: int = 1
    attach: Callable[[Ingredients], Attachment] | None = None


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


def _smoothed(loss: Loss, value: float | None) -> Loss:
    import functools

    return functools.partial(loss, label_smoothing=_given(value))


def _wpsgd(noise: str = "gaussian") -> Callable[[Ingredients], Optimizer]:
    def build(given: Ingredients) -> Optimizer:
        import flatmin as fm

        # Two independent one-sided draws a step: as many gradient evaluations as NSO's one pair, the compute-matched
        # baseline of Zhang, Li, Ju (arXiv:2306.08553).
        sigma, model = given.radius, given.model
        return fm.WPSGD(given.base, sigma=sigma, num_perturbations=2, noise=noise, seed=given.seed, model=model)

    return build


def _nso(
    noise: str = "gaussian", pairs: int = 1, schedule: Callable[[float, int], Any] = lambda sigma, _: sigma
) -> Callable[[Ingredients], Optimizer]:
    def build(given: Ingredients) -> Optimizer:
        import flatmin as fm

        sigma, model = schedule(given.radius, given.num_steps), given.model
        return fm.NSO(given.base, sigma=sigma, num_perturbations=pairs, noise=noise, seed=given.seed, model=model)

    return build


def _rising(sigma: float, num_steps: int) -> Any:
    from flatmin.noise.schedules import linear

    return linear(sigma / num_steps, sigma, max(1, num_steps - 1))  # without noise, a step would be cheaper


def _falling(sigma: float, num_steps: int) -> Any:
    from flatmin.noise.schedules import linear

    return linear(sigma, 0.0, num_steps)


def _paired(given: Ingredients) -> Attachment:
    import flatmin as fm

    return fm.attach(given.model, given.base, given.radius, seed=given.seed)


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
    if "momentum" not in group:
        from flatmin_lab.errors import LabError

        raise LabError(
            "bsam has an update rule of its own, into which only SGD's setting can be translated, and the task's base "
            "optimizer is AdamW. Leave it out."
        )
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


LAWS = ("laplace", "uniform", "rademacher", "binomial")
"""The laws of noise beside the Gaussian one, each with a variant of NSO and of WP-SGD."""

_SIGMAS = (0.02, 0.05, 0.1, 0.15)
_RHOS = (0.1, 0.2, 0.5, 1.0)

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("sgd", "SGD", None, (), 1, _sgd),
        Method("wpsgd", "WP-SGD", "sigma", _SIGMAS, 2, _wpsgd()),
        Method("nso", "NSO", "sigma", _SIGMAS, 2, _nso()),
        Method("sam", "SAM", "rho", _RHOS, 2, _ascent("SAM")),
        Method("ls", "Label smoothing", "alpha", (0.1, 0.2, 0.3, 0.4), 1, _sgd, _smoothed),
        Method("usam", "USAM", "rho", _RHOS, 2, _ascent("USAM")),
        Method("asam", "ASAM", "rho", (0.2, 0.5, 1.0, 2.0), 2, _ascent("ASAM")),
        Method("rsam", "RSAM", "rho", _RHOS, 2, _rsam),
        Method("bsam", "BSAM", "rho", (0.01, 0.02, 0.05, 0.1), 2, _bsam),
        *(Method(f"wpsgd-{law}", f"WP-SGD, {law}", "sigma", _SIGMAS, 2, _wpsgd(law)) for law in LAWS),
        *(Method(f"nso-{law}", f"NSO, {law}", "sigma", _SIGMAS, 2, _nso(law)) for law in LAWS),
        Method("nso-k2", "NSO, k = 2", "sigma", _SIGMAS, 4, _nso(pairs=2)),
        Method("nso-rising", "NSO, σ rising", "sigma", _SIGMAS, 2, _nso(schedule=_rising)),
        Method("nso-falling", "NSO, σ falling", "sigma", _SIGMAS, 2, _nso(schedule=_falling)),
        Method("sgd-halves", "SGD, halves", None, (), 1, _sgd, micro_batches=2),
        Method("nso-halves", "Paired halves", "sigma", _SIGMAS, 1, _sgd, micro_batches=2, attach=_paired),
    )
}

MAIN = ("sgd", "wpsgd", "nso", "sam")
"""Those that are compared if nothing else is said."""
