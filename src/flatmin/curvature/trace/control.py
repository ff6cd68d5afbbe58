r"""The Gauss-Newton part of a Hessian's trace from gradients alone, and probes for what it leaves.

- Schraudolph, N. (2002). Fast curvature matrix-vector products for second-order gradient descent.
- Singh, S., Bachmann, G. and Hofmann, T. (2021). Analytic insights into structure and rank of neural network Hessian
  maps. NeurIPS: the functional Hessian, H - GGN.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from flatmin.curvature.counted import Counted
from flatmin.curvature.cut import cut
from flatmin.curvature.ghost import GGNTrace, ggn_trace, linearity
from flatmin.curvature.ghost.outputs import OutputCurvature
from flatmin.curvature.ghost.passes import Limits, Passes
from flatmin.curvature.operators.hessian import FunctionalHessian, Hessian
from flatmin.curvature.trace.hutchinson import all_columns, hutchinson
from flatmin.curvature.trace.plan import FEW, LEAST, by_pilot, first_probes
from flatmin.errors import ArgumentTypeError, DataError
from flatmin.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.setup import Setup

MAX_PASSES = 64
_USUAL = 24  # passes that a sample usually takes
_SHARE = 2 / 3  # of the tolerance and of the budget, for the Gauss-Newton part where it is sampled itself
_NAME = "control variate"


def control(setup: Setup, reason: str = "", seen: Outlook | None = None) -> TraceEstimate:
    r"""Return tr GGN plus an estimate of tr (H - GGN).

    .. math:: \operatorname{tr} H = \operatorname{tr} G + \operatorname{tr} (H - G)

    The first comes from per-example norms of gradients (:func:`~flatmin.curvature.ghost.ggn_trace`), exactly unless
    there are many classes. The second, whose variance is far smaller than that of H, is estimated by probes, with or
    without deflation as its own pilot advises; of it, only the diagonal blocks of parameters in which the network is
    not piecewise linear are left. In a network of ReLU, pooling and convolutions with batch-norm in evaluation mode
    none is, and the trace is exact.

    ``num_matvecs`` bounds the products with H - G.

    Args:
        setup: What is asked for.
        reason: Why it came to this.
        seen: What the first batch told, if it was looked at.

    Raises:
        ArgumentTypeError: The operator is not a :class:`Hessian`.
    """
    H = setup.A.operator
    if type(H) is not Hessian:
        raise ArgumentTypeError(
            f"method is 'control', but the operator is a {type(H).__name__}, of which no Gauss-Newton part is known. "
            "It works for Hessian(model, loss_fn, batches); others take 'deflated'."
        )
    most = MAX_PASSES if seen is None else _most_passes(setup, seen)
    exact = MAX_PASSES if setup.goal.asked else most  # a sample may do with fewer
    rtol = _SHARE * setup.goal.rtol or 0.005
    found = ggn_trace(H, max_passes=most, max_exact=exact, rtol=rtol, seed=setup.probes.seed)
    why = [reason] if reason else []
    if not found.curved and not found.uncovered:
        why.append("the network is piecewise linear in every parameter, so the Hessian's trace is the Gauss-Newton's")
        result = replace(setup, known_stderr=found.stderr).estimate(
            found.value,
            method="exact" if found.exact else "ggn",
            reason="; ".join(why),
            converged=not setup.goal.asked or found.stderr <= setup.goal.tolerance(found.value),
        )
        return replace(result, num_matvecs=result.num_matvecs + found.num_matvecs, route=found.route)
    if found.uncovered:
        why.append(f"outside the Gauss-Newton part: {found.reason}")
    remainder = Remainder(H, found)
    A = Counted(remainder)
    rest = replace(setup, A=A, known=found.value, known_stderr=found.stderr, accounts=[*setup.accounts, A], k=0)
    with remainder.session():
        if A.d <= min(rest.left, 2 * FEW):
            result = all_columns(rest)
            return replace(result, method=_NAME, reason="; ".join([*why, result.reason]))
        if rest.left < LEAST:
            return hutchinson(rest, method=_NAME, reason="; ".join(why))
        by_forward_passes = setup.limit is not None  # where gradients are counted: they cost less than a product
        found_by = by_pilot(rest, first_probes(rest), "; ".join(why), differences=by_forward_passes)
        return replace(found_by, method=_NAME, eigenvalues=None)


def _most_passes(setup: Setup, seen: Outlook) -> int:
    """Return how many backward passes the budget bears: a share of it where probes have to follow."""
    if seen.exact or setup.limit is None:
        return MAX_PASSES
    share = _SHARE if seen.curved else 1.0
    return max(4, int((3 * share * (setup.limit - setup.spent) - 1) / 2))


class Remainder:
    """What the exact part leaves of a Hessian: H - GGN on curved parameters, H on those that were not covered.

    It acts on the coordinates of these parameters alone, one after the other.

    Args:
        H: The Hessian.
        found: The exact part.
    """

    def __init__(self, H: Hessian, found: GGNTrace) -> None:
        slices, parts = H.layout.slices, ((H.related(FunctionalHessian), found.curved), (H, found.uncovered))
        self._parts = [(operator, [slices[name] for name in names]) for operator, names in parts if names]
        d = sum(place.stop - place.start for _, places in self._parts for place in places)
        self.shape: tuple[int, int] = (d, d)
        self.dtype: torch.dtype = H.dtype
        self.device: torch.device = H.device
        self._whole = H.shape[0]

    def forward_only(self) -> Remainder:
        """Return what gives the same quadratic forms by forward passes alone."""
        other = copy(self)
        other._parts = [(operator.forward_only(), places) for operator, places in self._parts]
        return other

    def quadratic_forms(self, block: Tensor) -> Tensor:
        """Return x'Ax for every column x of a block (d, m)."""
        forms = [operator.quadratic_forms(whole) for operator, _, whole in self._spread(block)]
        return torch.stack(forms).sum(0)

    def __matmul__(self, block: Tensor) -> Tensor:
        """Return the product with a block (d, m)."""
        images: list[Tensor] = []
        for operator, places, whole in self._spread(block):
            image = operator @ whole
            images += [image[place] for place in places]
        return torch.cat(images)

    def _spread(self, block: Tensor) -> Iterator[tuple[Hessian, list[slice], Tensor]]:
        """Yield each part, where its parameters stand, and a block (d, m) as vectors over all of them."""
        start = 0
        for operator, places in self._parts:
            whole = block.new_zeros(block.shape[1], self._whole).T
            for place in places:
                stop = start + place.stop - place.start
                whole[place] = block[start:stop]
                start = stop
            yield operator, places, whole

    @property
    def gradients(self) -> float:
        """What the risk has spent."""
        return self._parts[0][0].gradients

    @property
    def route(self) -> str:
        """How products are computed."""
        return self._parts[0][0].route

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep graphs between products."""
        with ExitStack() as stack:
            for operator, _ in self._parts:
                stack.enter_context(operator.session())
            yield


class Outlook(NamedTuple):
    """What the first batch tells of the Gauss-Newton part.

    Attributes:
        price: Gradients that its trace would cost; where it is sampled, what that usually costs.
        exact: Whether it would be exact.
        curved: Whether something would be left of the Hessian.
    """

    price: float
    exact: bool
    curved: bool


def outlook(H: Hessian) -> Outlook | None:
    """Look at the first batch: a forward pass; None if the Gauss-Newton part is out of reach."""
    risk = H.risk
    with risk.observed(differentiable=True):
        risk.check_weights()
        part = next(iter(risk.losses()))
        risk.spend(1 / 3, part.size)
        if not part.loss.requires_grad:
            return None
        outputs = cut(part.output, part.loss)
        try:
            passes = Passes(OutputCurvature(part.loss, outputs, Stream(0)), Limits(MAX_PASSES, MAX_PASSES))
        except DataError:
            return None
        shape = linearity(outputs, risk.parameters)
    count = passes.head if passes.exact else _USUAL
    return Outlook((1 + 2 * count) / 3, passes.exact, bool(shape.curved))
