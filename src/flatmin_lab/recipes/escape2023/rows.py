"""The flows of the two algorithms for many seeds at once: a vector of each is a row.

The text of a flow stays as it is. What it adds, scales and projects are rows; the threshold, at which rows part, is
looked at outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatmin import flows
from flatmin.perturb import FULL_BATCH, Realized
from flatmin.perturb.functional import run_live
from flatmin.streams import Stream

if TYPE_CHECKING:
    from flatmin.problems import Valley
    from flatmin_lab.recipes.escape2023.scalings import Scaling

_CPU = torch.device("cpu")
_ZERO = 1e-150  # norms below are of numbers whose squares underflow: they have no direction
_RESTART = 1e-9  # length of Remark 2's random step, where an example's gradient is zero


class Rows:
    """Vectors of many seeds, with the operations of :class:`flatmin.vectors.Vector` that flows use.

    Args:
        tensor: (rows, d).
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.tensor + other.tensor)

    def __mul__(self, scale: float | Tensor) -> Rows:
        return Rows(self.tensor * scale)

    __rmul__ = __mul__

    def norm(self) -> Tensor:
        """Return the norm of all rows together: zero only where every row is zero."""
        return self.tensor.norm()

    def unit(self) -> Rows:
        """Return each row at length one; a zero row stays zero."""
        length = self.tensor.norm(dim=-1, keepdim=True)
        return Rows(self.tensor / torch.where(length == 0, 1.0, length))

    def orthogonal_to(self, other: Rows) -> Rows:
        """Return each row without its component along that of ``other``."""
        square = other.tensor.square().sum(-1, keepdim=True)
        along = (self.tensor * other.tensor).sum(-1, keepdim=True) / torch.where(square == 0, 1.0, square)
        return Rows(self.tensor - along * other.tensor)


@dataclass(frozen=True)
class RowStream(Stream):
    """A stream that gives each row a sign of its own.

    Args:
        rows: How many.
    """

    rows: int = 1

    def sign(self) -> Any:
        """Return fair signs, (rows, 1)."""
        return 2.0 * torch.randint(2, (self.rows, 1), generator=self.generator(1, _CPU), dtype=torch.float64) - 1


def direction(valley: Valley, method: str, x: Tensor, scaling: Scaling, *, seed: int, step: int) -> Tensor:
    """Return what the algorithm steps along, in units of η, at each row.

    Args:
        valley: The problem.
        method: ``"RS"``, Algorithm 1, or ``"SA"``, Algorithm 2 in its exact form.
        x: (rows, d).
        scaling: Radius and threshold.
        seed: Of all rows.
        step: Selects the noise.
    """
    gradient = valley.gradient(x)
    is_far = gradient.norm(dim=-1, keepdim=True) > scaling.threshold
    descent = scaling.descent / scaling.eta * gradient
    if bool(is_far.all()):
        return descent
    stream = RowStream(seed, (step,), rows=len(x))
    if method == "RS":
        flow, evaluate = flows.randomly_smoothed(stream, rho=scaling.rho), valley.gradient
    else:
        flow, evaluate = flows.sharpness_aware(stream, rho=scaling.rho, exact=True), _of_example(valley, stream, x)

    def answer(request: Any) -> Any:
        if isinstance(request, Realized):
            return Rows(request.draw.law.sample_(torch.empty_like(x), request.draw.stream.generator(0, _CPU)))
        if isinstance(request, Rows):
            return Rows(evaluate(x + request.tensor))
        return Rows(gradient if method == "RS" or request == FULL_BATCH else evaluate(x))

    found: Any = run_live(flow, answer)[0]
    return torch.where(is_far, descent, found.tensor)


def _of_example(valley: Valley, stream: RowStream, x: Tensor) -> Any:
    """Return what evaluates the gradient of one random example a row; off the minima where it would be zero there."""
    example = torch.randint(valley.num_examples, (len(x),), generator=stream.generator(2, _CPU))
    noise = partial(torch.randn, *x.shape, generator=stream.generator(3, _CPU), dtype=x.dtype)

    def evaluate(y: Tensor) -> Tensor:
        gradient = valley.example_gradient(y, example)
        is_zero = gradient.norm(dim=-1, keepdim=True) < _ZERO
        if not bool(is_zero.any()):
            return gradient
        nearby = valley.example_gradient(y + _RESTART * Rows(noise()).unit().tensor, example)
        return torch.where(is_zero, nearby, gradient)

    return evaluate
