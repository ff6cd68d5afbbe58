"""Operators that are means over data: a pass over the batches multiplies all vectors; a session keeps the graphs."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from flatmin.checks import choice, whole
from flatmin.curvature.batch import check_depends
from flatmin.curvature.operators.base import Operator, all_finite
from flatmin.curvature.operators.duals import check_all_dual, dual_parameters
from flatmin.curvature.operators.routes import (
    NoSecondDerivativeError,
    Route,
    check_twice_differentiable,
    second_derivatives,
    without_autocast,
)
from flatmin.curvature.operators.session import Session
from flatmin.curvature.operators.steps import Differences, add, pieces
from flatmin.curvature.risk import EmpiricalRisk
from flatmin.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from flatmin.curvature.batch import Batch, BatchLoss
    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.layout import Layout
    from flatmin.curvature.observe import Mode
    from flatmin.curvature.operators.session import Product
    from flatmin.curvature.operators.steps import Line

Kind = TypeVar("Kind", bound="RiskOperator")


class RiskOperator(Operator):
    r"""A symmetric operator that is the mean of one operator a batch, weighted by the batches' numbers of examples.

    .. math:: A = \frac1N \sum_b n_b A_b, \qquad N = \sum_b n_b

    It looks at the model's present weights and leaves weights, ``.grad``, buffers, modes and random states as found.
    Frozen parameters are left out, parameters without influence on the loss have zero rows, shared ones count once.
    Coordinates lie in the order of ``model.named_parameters()``: see ``layout``.

    What products cost is counted in ``gradients``, one being a forward and a backward pass over all the data: a forward
    pass counts 1/3, a backward pass 2/3, whatever differentiates a backward pass 2, as their operations do.

    Args:
        model: The model, or a function of (parameters, inputs).
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch.
        batches: A ``DataLoader``, a list, or another re-iterable of (inputs, targets) or of mappings.
        mode: ``"eval"`` puts every module into evaluation mode for the product; ``"current"`` takes the modules as they
            stand (batch-norm by batch statistics; dropout with the same masks in every product).
        parameters: Where to measure, by name, for a model that is a function.
        route: ``"reverse"``: the graphs of first derivatives are differentiated again, and kept in a session.
            ``"forward"``: dual numbers, no graph is kept. ``"differences"``: central differences of first derivatives.
            ``"auto"``: reverse, the cheapest; differences once there is no second derivative, and ``.route`` says why.
        memory: Bytes for what is kept between passes beyond the graph of one batch: the graphs of a session, and what
            the exact trace holds back; 0 keeps nothing. Default: a share of what is free then.

    Attributes:
        shape: (d, d), d being the number of trainable parameters.
        dtype: Type of the vectors: that of the parameters, float32 for parameters of lower precision.
        device: Device of the vectors: that of the first parameter.
        layout: Splits a flat vector into named tensors and back.
        memory: As given; None by default.

    Raises:
        ArgumentError: No parameter requires gradients.
        ArgumentTypeError: An argument is of the wrong kind, or ``batches`` can be read only once.
    """

    _BUILD = 1.0  # a forward and a backward pass
    _FORWARD = 3.0  # three gradients: each product inside becomes three with dual numbers
    _DIFFERENCE = 2.0
    _FORWARD_ROUTE, _REVERSE_ROUTE = "forward over reverse", "reverse over reverse"

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        mode: Mode = "eval",
        parameters: Mapping[str, Tensor] | None = None,
        route: Route = "auto",
        memory: int | None = None,
    ) -> None:
        if memory is not None:
            whole("memory", memory, minimum=0, hint="It counts the bytes that graphs may take during a session.")
        choice("route", route, get_args(Route))
        self._set_up(EmpiricalRisk(model, loss_fn, batches, mode=mode, parameters=parameters), memory, route)

    def _set_up(self, risk: EmpiricalRisk, memory: int | None, route: Route = "auto") -> None:
        self.risk: EmpiricalRisk = risk
        self.parameters: list[nn.Parameter] = list(risk.parameters.values())
        self.layout: Layout = risk.layout
        self.shape: tuple[int, int] = (self.layout.numel, self.layout.numel)
        self.device: torch.device = risk.device
        self.dtype: torch.dtype = reduce(
            torch.promote_types, (p.dtype for p in risk.parameters.values()), torch.float32
        )
        self.memory = memory
        self._asked: Route = route
        self._session: Session | None = None
        self._differences = Differences(risk, self._difference) if route == "differences" else None
        self._closed = ""  # why the exact routes are

    def related(self, kind: type[Kind]) -> Kind:
        """Return the operator of another kind on the same risk; what both spend is counted together.

        Example:
            >>> from flatmin.curvature import Hessian
            >>> from flatmin.curvature.operators import GGN
            >>> H = Hessian(nn.Linear(2, 1), nn.functional.mse_loss, [(torch.ones(1, 2), torch.ones(1, 1))])
            >>> H.related(GGN)
            GGN(Linear, 3 parameters)
        """
        (operator := kind.__new__(kind))._set_up(self.risk, self.memory, self._asked)
        return operator

    @abstractmethod
    def _prepare(self, part: BatchLoss) -> Product:
        """Return what multiplies vectors by the operator of this batch, in reverse mode."""

    @abstractmethod
    def _push(self, part: BatchLoss, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the product for a batch evaluated with dual ``parameters`` W + εv."""

    @abstractmethod
    def _difference(self, item: Batch, line: Line, s: float) -> Sequence[Tensor | None]:
        """Return the product for a batch with the vector of ``line``, from derivatives at ±s along it."""

    @property
    def gradients(self) -> float:
        """What was spent on products so far, in gradients of all the data."""
        return self.risk.gradients

    @property
    def meter(self) -> object:
        """The risk, which counts for all operators on it."""
        return self.risk

    @property
    def route(self) -> str:
        """How products are computed, and why not otherwise."""
        if self._differences is not None:
            return self._differences.route + (f", no second derivative: {self._closed}" if self._closed else "")
        return self._FORWARD_ROUTE if self._asked == "forward" else self._REVERSE_ROUTE

    @property
    def error(self) -> float | None:
        """The relative error of a product as estimated at the first one, by central differences; None by others."""
        return None if self._differences is None else self._differences.error

    def __repr__(self) -> str:
        """Show of what it is."""
        return f"{type(self).__name__}({type(self.risk.model).__name__}, {self.shape[0]} parameters)"

    @contextmanager
    def session(self) -> Iterator[None]:
        """Inside this context the graphs of the batches are kept between products, as far as memory allows."""
        if self._session is not None:
            yield
            return
        self._session = Session.within(self.memory, self.device)
        try:
            yield
        finally:
            self._session = None

    def _multiply(self, columns: Tensor) -> Tensor:
        if self._differences is None:
            try:
                with second_derivatives():
                    return self._mean(self._dually(columns) if self._asked == "forward" else self._in_reverse(columns))
            except NoSecondDerivativeError as missing:
                if self._asked != "auto":
                    raise
                self._differences, self._closed = Differences(self.risk, self._difference), missing.reason
                if self._session is not None:
                    self._session.clear()
        return self._mean(self._differences.multiply(columns, self._DIFFERENCE))

    def _mean(self, total: Tensor) -> Tensor:
        total = total.div_(self.risk.num_examples or 1).to(self.dtype)
        if not all_finite(total):
            raise NonFiniteError(
                f"the product with the {type(self).__name__} holds NaN or infinity although loss and weights are "
                "finite: a second derivative does not exist or overflows (sqrt, norm or a power at 0?). Add a small "
                "eps there."
            )
        return total

    def _in_reverse(self, columns: Tensor) -> Tensor:
        """Return the sum over batches of products by graphs: those that a session keeps, then new ones."""
        total, session, risk = torch.zeros_like(columns), self._session, self.risk
        if session is not None:
            session.move_to(risk.place())
            with risk.observed(differentiable=True) if session.recomputes else nullcontext():
                for product, size in session.kept:
                    self._accumulate(product, columns, total, weight=size, keep=True)
            if session.complete:
                return total
        with risk.observed(differentiable=True):
            risk.check_weights()
            for part in risk.losses(skip=0 if session is None else len(session.kept)):
                risk.spend(self._BUILD, part.size)
                with without_autocast(self.device):
                    product, size, is_first = self._prepare(part), part.size, part.index == 0
                del part  # or its graph would stay while the next one is built
                if is_first:
                    check_twice_differentiable(product.roots)
                keep = session is not None and session.take(product, size)
                self._accumulate(product, columns, total, weight=size, keep=keep)
                del product
        if session is not None:
            session.all_seen()
        return total

    def _dually(self, columns: Tensor) -> Tensor:
        """Return the sum over batches of products by dual numbers: every vector evaluates the model anew."""
        risk, total, moving = self.risk, torch.zeros_like(columns), self.risk.moving(columns)
        with risk.observed(differentiable=True):
            risk.check_weights()
            for item in risk.read():
                for column, into in zip(moving.unbind(1), total.unbind(1), strict=True):
                    image = self._pushed(item, pieces(column, self.parameters))
                    add(image, into, self.parameters, weight=item.size)
                risk.spend(self._FORWARD * columns.shape[1], item.size)
        return total

    def _pushed(self, item: Batch, vector: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the product of one batch with one vector by dual numbers."""
        with dual_parameters(self.risk.model, self.risk.parameters, vector) as duals:
            part = self.risk.evaluate(item)
            check_depends(part.loss)
            if item.index == 0:
                check_all_dual(part.loss, self.risk.parameters)
            with without_autocast(self.device):
                return self._push(part, duals)

    def _accumulate(self, product: Product, columns: Tensor, total: Tensor, *, weight: int, keep: bool) -> None:
        """Add ``weight`` times the product of one batch with ``columns`` to ``total``."""
        last = columns.shape[1] - 1
        for j in range(columns.shape[1]):
            with without_autocast(self.device):
                image = product(pieces(columns.select(1, j), self.parameters), keep=keep or j < last)
            add(image, total.select(1, j), self.parameters, weight=weight)
        self.risk.spend(product.cost * columns.shape[1], weight)
