"""Quadratic forms from forward passes alone: no derivative of the network is taken, first or second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from flatmin.checks import positive, whole
from flatmin.curvature.memory import available_memory
from flatmin.curvature.operators.points import Centre, Parts, Points
from flatmin.curvature.operators.risk_operator import RiskOperator
from flatmin.curvature.operators.step_control import Step, Steps, step_for
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.distributed import sum_over_ranks
from flatmin.errors import ArgumentTypeError, NonFiniteError
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode

_SHARE = 0.25  # of the free memory, for what batches keep between two points


class ForwardOnlyHessian(RiskOperator):
    r"""The Hessian's quadratic forms from forward passes alone; it has no products.

    .. math:: v^\top H v \approx \frac1N \sum_n
        \Big(\frac{z_+ - z_-}{2h}\Big)^{\!\top} \nabla_z^2 \ell_n \Big(\frac{z_+ - z_-}{2h}\Big)
        + \frac{\partial \ell_n}{\partial z} \cdot \frac{z_+ - 2z + z_-}{h^2}, \qquad z_\pm = z(W \pm hv)

    with z the outputs of the model. The loss is differentiated, which is cheap and exact, and the network is not: no
    graph is recorded. Whatever runs forward can be measured, with the memory of a forward pass: fused attention,
    compiled models, quantised layers (parameters that require gradients are moved, the rest stays), and models sharded
    by FSDP2, over whose ranks the mean is taken. Outputs are far better conditioned than losses, of whose digits
    f(W + hv) + f(W - hv) - 2 f(W) cancels nearly all. Losses are what is left where they are no function of the
    outputs: a penalty on the weights, or a model that returns its loss, as those of transformers do when given labels
    (let ``loss_fn`` make it from the logits). ``route`` tells.

    The step is chosen on the first batch, once for each set of parameters that vectors touch and each place in weight
    space: its length h‖v‖, relative to the norm of those parameters, is where truncation, as h², and rounding, as 1/h²,
    are as small as each other. About 10⁻² in float32, with an error of a part in a thousand.

    **Kinks.** For ReLU and max-pooling, second derivatives are those of the pieces, but a difference steps over kinks
    and sees them: on a CIFAR ResNet-20 it gives two to three times the Hessian's trace at any step, the curvature that
    noise of that size acts on. For the Hessian's trace take :class:`ForwardOnlyGGN` there, whose trace it is.

    In gradients: 1/3 for the outputs at W, once a block, and 2/3 a vector. Memory: one copy of the weights, one vector,
    and the outputs.

    Args:
        model: As for :class:`RiskOperator`, and so are the attributes and what is left untouched.
        loss_fn: Likewise.
        batches: Likewise.
        step: h‖v‖, relative to the norm of the parameters that v touches. Default: chosen as above.
        mode: As for :class:`RiskOperator`.
        parameters: Likewise.
        memory: Bytes that batches may keep of their outputs between two points; with more of them, weights are moved
            less often. One batch is always kept. Default: a quarter of what is free.

    Attributes:
        step: As given; may be set.
        error: The largest estimated error of a form, relative to the size of its two parts; None before the first, or
            where ``step`` was given.

    Raises:
        ArgumentTypeError: A product is asked for.
        ArgumentError: 16-bit weights are too coarse for any step.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> batches = [(torch.tensor([[1.0, 2.0]]).double(), torch.zeros(1, 1).double())]
        >>> H = ForwardOnlyHessian(model, torch.nn.functional.mse_loss, batches)
        >>> H.quadratic_forms(torch.eye(2).double())               # of 2 x xᵀ
        tensor([2.0000, 8.0000], dtype=torch.float64)
    """

    multiplies = False

    _ROUNDING = 2  # the power of 1/h by which rounding grows
    _WHAT = "second differences"
    _WITH_PRODUCTS = "Hessian"

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        step: float | None = None,
        mode: Mode = "eval",
        parameters: Mapping[str, Tensor] | None = None,
        memory: int | None = None,
    ) -> None:
        if step is not None:
            positive("step", step, hint="It is relative to the norm of the parameters; 1e-2 is usual in float32.")
        if memory is not None:
            whole("memory", memory, minimum=0, hint="It counts the bytes that batches may keep of their outputs.")
        risk = EmpiricalRisk(model, loss_fn, batches, mode=mode, parameters=parameters, sharded=True)
        self._set_up(risk, memory)
        self.step = step

    def _set_up(self, risk: EmpiricalRisk, memory: int | None, *args: Any, **options: Any) -> None:
        super()._set_up(risk, memory, *args, **options)
        self.step: float | None = None
        self._steps = Steps()
        self._place: Hashable = None
        self._on_losses = False

    @property
    def error(self) -> float | None:
        """The largest estimated relative error by the step."""
        return None if self.step else self._steps.error

    @property
    def route(self) -> str:
        """How forms are computed, by which step, and with what error."""
        what = f"{self._WHAT} of {'losses' if self._on_losses else 'outputs'}, forward passes only"
        return what + (str(self._steps) if self.step is None else f", step {self.step:.2g}")

    def quadratic_forms(self, block: Tensor) -> Tensor:
        """Return v'Hv for every column v of ``block`` (d, m), shape (m,), summed in float64.

        Raises:
            ArgumentError: ``block`` has another shape or is not finite, or 16-bit weights are too coarse.
            NonFiniteError: Outputs or loss are NaN or infinite at displaced weights.
        """
        self._check(block)
        columns = self.risk.moving(self._columns(block))
        with self.risk.observed():
            self.risk.check_weights()
            totals = sum_over_ranks(lambda: self._totals(columns), self.risk.groups)
        forms = totals[:-1] / totals[-1]
        if not forms.isfinite().all():
            raise NonFiniteError(
                f"a quadratic form of the {type(self).__name__} is not finite although loss and weights are: outputs "
                f"overflow at displaced weights ({self.route}). Set a smaller step, such as H.step = 1e-3."
            )
        return forms.reshape(block.shape[1:])

    def _totals(self, columns: Tensor) -> Tensor:
        """Return the sums of the forms over the examples of this rank, and then the number of these, shape (m + 1,)."""
        if self._place != (place := self.risk.place()):  # other weights: other steps
            self._place, self._steps = place, Steps()
        totals = columns.new_zeros(columns.shape[1] + 1, dtype=accumulation_dtype(self.device))
        # One at a time: the norm of a block would hold all of it in wide numbers.
        lengths = [torch.linalg.vector_norm(column, dtype=totals.dtype) for column in columns.unbind(1)]
        norms = torch.stack(lengths).tolist() if lengths else []
        points = Points(self.risk)
        try:
            for chunk in self._chunks():
                for j, norm in enumerate(norms):
                    if norm > 0:
                        totals[j] += self._form(points, chunk, columns[:, j], norm)
                points.rest()
                totals[-1] += sum(centre.size for centre in chunk)
        finally:
            points.close()
        return totals

    def _form(self, points: Points, chunk: list[Centre], column: Tensor, norm: float) -> Tensor:
        """Return the sum over the examples of ``chunk`` of one form."""
        vector = self.layout.split(column)
        touched = tuple(bool(part.any()) for part in vector.values())
        unit = points.norm(touched) / norm
        size = self.step
        if size is None:
            if touched not in self._steps:
                self._steps[touched] = self._choose(points, chunk[0], vector, unit)
            size = self._steps[touched].size
        return self._combine(points.parts(chunk, vector, size * unit))

    def _choose(self, points: Points, centre: Centre, vector: Mapping[str, Tensor], unit: float) -> Step:
        """Choose the step on one batch; on one of each rank where these share the weights, and must move together."""

        def evaluate(size: float) -> tuple[float, float]:
            parts = torch.stack(points.parts([centre], vector, size * unit))
            total = sum_over_ranks(lambda: parts, self.risk.groups)
            return float(self._combine(Parts(*total))), float(self._combine(Parts(*total.abs())))

        types = [*(p.dtype for p in self.risk.parameters.values()), *(z.dtype for z in centre.outputs)]
        return step_for(types, evaluate, rounding=self._ROUNDING)

    def _combine(self, parts: Parts) -> Tensor:
        return parts.outer + parts.functional

    def _chunks(self) -> Iterator[list[Centre]]:
        """Yield the batches evaluated at W, as many at a time as memory allows."""
        budget = int(_SHARE * available_memory(self.device)) if self.memory is None else self.memory
        chunk, used = list[Centre](), 0
        for part in self.risk.losses():
            centre = Centre.of(part, self.risk)
            self._look_at(centre)
            self.risk.spend(1 / 3, part.size)
            chunk.append(centre)
            used += centre.nbytes
            if used + centre.nbytes > budget:  # before the next is read, which goes on from this one's random states
                yield chunk
                chunk, used = [], 0
        if chunk:
            yield chunk

    def _look_at(self, centre: Centre) -> None:
        self._on_losses |= centre.is_loss

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ArgumentTypeError(
            f"a product with the {type(self).__name__} was asked for, but forward passes give quadratic forms alone: "
            "A.quadratic_forms(block), of which a trace by probes is made. Eigenvalues, densities and diagonals need "
            f"products, and so gradients: use {self._WITH_PRODUCTS}(model, loss_fn, batches)."
        )

    _multiply = _prepare = _push = _difference = _refuse
