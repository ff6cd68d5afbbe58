r"""Probes by forward passes: a third of the price of a product, and an error that a few products measure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from flatmin.curvature.counted import Counted
from flatmin.curvature.operators.forward_only import ForwardOnlyHessian
from flatmin.curvature.trace.hutchinson import hutchinson
from flatmin.curvature.trace.sampling import Drawn, Samples, cautious
from flatmin.errors import ArgumentTypeError, FlatminError

if TYPE_CHECKING:
    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.complement import Remove
    from flatmin.curvature.trace.pilot import Pilot
    from flatmin.curvature.trace.setup import Setup

_PRICE = 0.75  # gradients: two forward passes, and a share of the one at the weights themselves
_SHARE = 0.3  # of the error to come, that the error by differences may be uncertain by


def forward(setup: Setup) -> TraceEstimate:
    """Return the mean of quadratic forms by forward passes; see :class:`ForwardOnlyHessian` for their error.

    Raises:
        ArgumentTypeError: The operator is no Hessian of a model.
    """
    H = setup.A.operator
    if isinstance(H, ForwardOnlyHessian):
        return _with_error(hutchinson(setup, method="forward"), H)
    F = _by_forward_passes(H)
    if F is None:
        raise ArgumentTypeError(
            f"method is 'forward', but the operator is a {type(H).__name__}, whose quadratic forms no forward passes "
            "give. It works for Hessian(model, loss_fn, batches)."
        )
    A = Counted(F)
    return _with_error(hutchinson(replace(setup, A=A, accounts=[*setup.accounts, A]), method="forward"), F)


def _by_forward_passes(operator: Any) -> Any:
    """Return the operator whose forms are differences of outputs; None if there is none."""
    way = getattr(operator, "forward_only", None)
    return None if way is None else way()


def _with_error(result: TraceEstimate, F: Any) -> TraceEstimate:
    told = "" if F.error is None else f"forms by differences, with an estimated relative error of {F.error:.1g}"
    return replace(result, reason=told)


class Differences:
    r"""Quadratic forms by forward passes in place of products, corrected by the probes that have both.

    With n₀ probes of which the product is known too, and n in all,

    .. math:: \frac1n \sum_{j \le n} \tilde q_j + \frac1{n_0} \sum_{j \le n_0} (q_j - \tilde q_j)

    is unbiased whatever the error of the differences q̃ is; where they step over kinks it scatters, and
    :meth:`tried` finds out.

    Args:
        setup: What is asked for.
        pilot: The probes that have both.
        A: The operator whose forms are differences.

    Attributes:
        plain: Samples of the whole trace that begin with the pilot's.

    Raises:
        FlatminError: Differences cannot be had.
    """

    def __init__(self, setup: Setup, pilot: Pilot, A: Counted) -> None:
        self._setup, self._pilot, self._A = setup, pilot, A
        self.plain: Samples = self(pilot.plain(), setup.A.d, lambda _: None)

    @classmethod
    def tried(cls, setup: Setup, pilot: Pilot) -> Differences | None:
        """Return them if their error is known well enough, and make them the price of a sample."""
        operator = _by_forward_passes(setup.A.operator)
        if operator is None:
            return None
        A = Counted(operator)
        setup.accounts = [*setup.accounts, A]
        plain = pilot.plain()
        try:
            differences = cls(setup, pilot, A)
        except FlatminError:
            return None
        samples = differences.plain
        price = _PRICE / setup.price
        few = len(plain.forms) + setup.left / price
        to_come = setup.goal.tolerance(plain.value) if setup.goal.asked else math.sqrt(plain.expected_variance() / few)
        own = math.sqrt(max(0.0, samples.offset_stderr**2 - plain.offset_stderr**2))
        if cautious(own, len(plain.forms)) > _SHARE * to_come:
            return None
        setup.sample_price = price
        return differences

    def __call__(self, samples: Samples, dimension: int, remove: Remove) -> Samples:
        """Return what takes the place of ``samples``, which are the pilot's in a complement of this dimension."""
        forms = self._A.forms(self._pilot.rows(dimension).T).cpu().double()
        deviation = torch.tensor(samples.forms, dtype=torch.float64) - forms

        def draw(start: int, stop: int) -> Drawn:
            rows = self._setup.probes.block(self._A, start, stop).T
            remove(rows)
            return Drawn(self._A.forms(self._setup.probes.fitted_(rows.T, dimension)).cpu())

        return Samples(
            draw,
            samples.variance,
            offset=samples.offset + float(deviation.mean()),
            offset_stderr=math.hypot(samples.offset_stderr, float(deviation.std()) / math.sqrt(len(forms))),
            forms=forms.tolist(),
            energies=samples.energies,
        )
