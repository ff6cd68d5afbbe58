r"""The Gauss-Newton part of a Hessian's trace from gradients alone, and probes for what it leaves.

- Schraudolph, N. (2002). Fast curvature matrix-vector products for second-order gradient descent.
- Singh, S., Bachmann, G. and Hofmann, T. (2021). Analytic insights into structure and rank of neural network Hessian
  maps. NeurIPS: the functional Hessian, H - GGN.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from flatmin.curvature.counted import Counted
from flatmin.curvature.cut import cut
from flatmin.curvature.ghost import GGNTrace, ggn_trace, linearity
from flatmin.curvature.ghost.outputs import OutputCurvature
from flatmin.curvature.ghost.passes import Passes
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
_SHARE = 0.5  # of the tolerance, for the Gauss-Newton part where it is sampled itself
_NAME = "control variate"


def control(setup: Setup, reason: str = "") -> TraceEstimate:
    r"""Return tr GGN plus an estimate of tr (H - GGN).

    .. math:: \operatorname{tr} H = \operatorname{tr} G + \operatorname{tr} (H - G)

    The first comes from per-example norms of gradients (:func:`~flatmin.curvature.ghost.ggn_trace`), exactly unless
    there are many classes. The second, whose variance is far smaller than that of H, is estimated by probes, with or
    without deflation as its own pilot advises; of it, only the diagonal blocks of parameters in which the network is
    not piecewise linear are left. In a network of ReLU, pooling and convolutions with batch-norm in evaluation mode
    none is, and the trace is exact.

    ``num_matvecs`` bounds the products with H - G.

    Raises:
        ArgumentTypeError: The operator is not a :class:`Hessian`.
    """
    H = setup.A.operator
    if type(H) is not Hessian:
        raise ArgumentTypeError(
            f"method is 'control', but the operator is a {type(H).__name__}, of which no Gauss-Newton part is known. "
            "It works for Hessian(model, loss_fn, batches); others take 'deflated'."
        )
    found = ggn_trace(H, max_passes=MAX_PASSES, rtol=_SHARE * setup.goal.rtol or 0.005, seed=setup.probes.seed)
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
        return replace(by_pilot(rest, first_probes(rest), "; ".join(why)), method=_NAME, eigenvalues=None)


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
        self.shape, self.dtype, self.device, self._whole = (d, d), H.dtype, H.device, H.shape[0]

    def __matmul__(self, block: Tensor) -> Tensor:
        """Return the product with a block (d, m)."""
        images: list[Tensor] = []
        start = 0
        for operator, places in self._parts:
            whole = block.new_zeros(self._whole, block.shape[1])
            for place in places:
                stop = start + place.stop - place.start
                whole[place] = block[start:stop]
                start = stop
            image = operator @ whole
            images += [image[place] for place in places]
        return torch.cat(images)

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
        price: Gradients that its trace would cost.
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
            passes = Passes(OutputCurvature(part.loss, outputs, Stream(0)), MAX_PASSES)
        except DataError:
            return None
        shape = linearity(outputs, risk.parameters)
    count = passes.head if passes.exact else MAX_PASSES
    return Outlook((1 + 2 * count) / 3, passes.exact, bool(shape.curved))
