"""Central differences of derivatives: evaluations at displaced weights, and products made of them."""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch._utils import _unflatten_dense_tensors

from flatmin.curvature.operators.routes import kinks_behind
from flatmin.curvature.operators.step_control import choose_step, distance
from flatmin.errors import ArgumentTypeError, NonFiniteError
from flatmin.perturb.displace import Displacer
from flatmin.vectors import Vector, accumulation_dtype, dense, has_16_bits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from flatmin.curvature.batch import Batch, BatchLoss
    from flatmin.curvature.risk import EmpiricalRisk

_NEARER = 4.0  # a step that is given is held against this fraction of it
_UNSETTLED = 0.05
_SMALL = 2**16  # elements, up to which a copy costs less than the calls that save it


class Line:
    """The weights along a line: W + s v, at which batches are evaluated.

    Args:
        risk: What is evaluated; inside ``risk.observed``.

    Attributes:
        vector: v, one tensor a parameter.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = risk
        self._displacer = Displacer(dict(enumerate(risk.parameters.values())))
        self.vector: list[Tensor] = []
        self.close: Callable[[], None] = self._displacer.release

    def at(self, s: float, item: Batch) -> BatchLoss:
        """Return the batch evaluated at W + s v, bitwise at W for s = 0.

        Raises:
            NonFiniteError: The loss is NaN or infinite.
        """
        self._displacer.restore()
        if s:
            scaled = torch._foreach_mul(self.vector, s)
            self._displacer.displace(Vector(dict(enumerate(scaled))))
        part = self._risk.evaluate(item, finite=s == 0)
        if s and not part.loss.detach().isfinite():
            raise NonFiniteError(
                f"the loss of batch {item.index} is {float(part.loss.detach())} at weights displaced for a central "
                "difference. Likely causes: NaN in the data of this batch, or a step too large for these weights; pass "
                "a smaller step to FiniteDifferenceHessian."
            )
        return part


class Differences:
    r"""Products by central differences of first derivatives, batch by batch.

    .. math:: A v \approx \frac{g(W + h v) - g(W - h v)}{2 h}

    The error is that of rounding, which grows as 1/h, and of truncation, which falls as h². The step, the length of
    h v, is found on the first batch and the first vector, on a ladder of steps around ε^⅓ ‖W‖, ε being the precision
    of the weights; by how much neighbours differ is the estimate of the error: see
    :mod:`~flatmin.curvature.operators.step_control`.

    Args:
        risk: What is differentiated.
        difference: Returns the central difference for one batch, at ±s along a line.
        step: ‖h v‖; None chooses it.

    Attributes:
        step: As chosen; None before the first product.
        error: Estimated relative error of a product; None before the first.
        kinks: Kinds of operations in the model whose derivative jumps.

    Raises:
        ArgumentTypeError: Parameters of 16 bits.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        difference: Callable[[Batch, Line, float], Sequence[Tensor | None]],
        step: float | None = None,
    ) -> None:
        if has_16_bits(risk.parameters.values()):
            raise ArgumentTypeError(
                "central differences cannot work on parameters of 16 bits: the steps that are small enough are lost in "
                "their rounding. Measure a float32 copy, copy.deepcopy(model).float(), or pass route='forward' or "
                "'reverse'."
            )
        self._risk, self._difference = risk, difference
        self.step: float | None = step
        self.error: float | None = None
        self.kinks: list[str] = []

    @property
    def route(self) -> str:
        """How products are computed, and how well."""
        if self.error is None:
            return "central differences"
        known = f"central differences (step {self.step:.1e}, estimated error {self.error:.1g}"
        if self.kinks:
            return f"{known}; across the kinks of {', '.join(self.kinks)}, which autodiff does not see)"
        return f"{known}{', which does not settle' if self.error > _UNSETTLED else ''})"

    def multiply(self, columns: Tensor, cost: float) -> Tensor:
        """Return the sum over batches of their size times the product with ``columns``, in wide numbers.

        Args:
            columns: Vectors, (d, m).
            cost: What a product costs, in gradients of a batch.
        """
        columns = self._risk.moving(columns)
        total = torch.zeros_like(columns, dtype=accumulation_dtype(columns.device))
        parameters = list(self._risk.parameters.values())
        lengths = columns.to(total.dtype).norm(dim=0).tolist()
        with self._risk.observed(differentiable=True, once=True), closing(Line(self._risk)) as line:
            self._risk.check_weights()
            for item in self._risk.read():
                for j, length in enumerate(lengths):
                    if length == 0:
                        continue
                    line.vector = pieces(columns[:, j], parameters)
                    if self.error is None:
                        self._settle(item, line, length, cost)
                    image = self._difference(item, line, (self.step or 1.0) / length)
                    add(image, total[:, j], parameters, weight=item.size)
                    self._risk.spend(cost, item.size)
        return total

    def _settle(self, item: Batch, line: Line, length: float, cost: float) -> None:
        """Choose the step, and estimate the error."""
        self.kinks = kinks_behind([line.at(0.0, item).loss])
        self._risk.spend(1 / 3, item.size)

        def image(size: float) -> tuple[Tensor | None, float]:
            self._risk.spend(cost, item.size)
            try:
                vector = flat(self._difference(item, line, size / length), line.vector)
            except NonFiniteError:
                return None, 0.0
            return vector, float(vector.norm())

        if self.step is not None:
            (here, _), (nearer, norm) = image(self.step), image(self.step / _NEARER)
            self.error = distance(here, nearer) / (norm or 1.0)
            return
        weights = [p.detach() for p in self._risk.parameters.values()]
        norm = float(Vector(dict(enumerate(weights))).norm()) or 1.0
        eps = max(torch.finfo(p.dtype).eps for p in weights)
        self.step, self.error = choose_step(image, eps ** (1 / 3) * norm, rounding=1, enough=eps ** (2 / 3), limit=norm)
        if not math.isfinite(self.error):
            self.step = self.error = None
            raise NonFiniteError(
                "no step gives finite central differences. Likely cause: the loss overflows next to these weights, or "
                "NaN in the data."
            )


def pieces(column: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return a vector as one tensor a parameter, of its shape and type and on its device."""
    parts = _unflatten_dense_tensors(
        column.contiguous(), parameters
    )  # a column of a block is not, and products would copy it each
    if all(p.dtype == column.dtype and p.device == column.device for p in parameters):
        return list(parts)
    return [part.to(parameter) for part, parameter in zip(parts, parameters, strict=True)]


def halved(ahead: Sequence[Tensor | None], behind: Sequence[Tensor | None], s: float) -> list[Tensor | None]:
    """Return (ahead - behind) / 2s, one tensor a parameter, dense; None (zero) where there is none."""
    pairs = zip(ahead, behind, strict=True)
    return [None if a is None or b is None else dense(a - b).div_(2 * s) for a, b in pairs]


def add(image: Sequence[Tensor | None], total: Tensor, parameters: Sequence[Tensor], *, weight: float) -> None:
    """Add ``weight`` times one tensor a parameter, None being zero, to a vector."""
    whole = [part.reshape(-1) for part in image if part is not None]
    if total.numel() < _SMALL and len(whole) == len(parameters):
        total.add_(torch.cat(whole).to(total), alpha=weight)
        return
    for into, part in zip(_unflatten_dense_tensors(total, parameters), image, strict=True):
        if part is not None:
            into.add_(part.to(total), alpha=weight)


def flat(image: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """Return one tensor a parameter, None being zero, as a vector in wide numbers."""
    parts = [torch.zeros_like(x) if part is None else part.detach() for part, x in zip(image, like, strict=True)]
    device = like[0].device
    return torch.cat([part.reshape(-1).to(device, accumulation_dtype(device)) for part in parts])
