"""Operators that are means over data: a pass over the batches multiplies all vectors; a session keeps the graphs."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from flatmin.checks import whole
from flatmin.curvature.memory import available_memory, graph_bytes
from flatmin.curvature.operators.base import Operator
from flatmin.curvature.risk import EmpiricalRisk, check_depends
from flatmin.errors import ArgumentTypeError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode
    from flatmin.curvature.risk import BatchLoss

_SHARE = 0.25  # of the memory that is free when a session begins


Kind = TypeVar("Kind", bound="RiskOperator")


class Product(Protocol):
    """One batch, ready to multiply vectors: whatever graph that needs, it holds.

    Attributes:
        cost: What a product costs, in gradients of the batch.
        roots: Tensors at the ends of the graph it holds, by which its memory is measured; none if it holds none.
    """

    cost: float
    roots: Sequence[Tensor]

    def __call__(self, vector: list[Tensor], *, keep: bool) -> Sequence[Tensor | None]:
        """Return the product, one tensor or None (zero) a parameter. Not called again if ``keep`` is False."""
        ...


class _Kept(NamedTuple):
    product: Product
    size: int


class _Session:
    """The graphs of the first batches, as many as the budget allows, at one place in weight space."""

    def __init__(self, budget: int) -> None:
        self.budget, self.used = budget, 0
        self.kept: list[_Kept] = []
        self.place: tuple[Any, ...] | None = None
        self.complete = False  # whether every batch of the data is kept
        self.full = False


class RiskOperator(Operator):
    r"""A symmetric operator that is the mean of one operator a batch, weighted by the batches' numbers of examples.

    .. math:: A = \frac1N \sum_b n_b A_b, \qquad N = \sum_b n_b

    It looks at the model's present weights and changes nothing: weights, ``.grad``, buffers, modes and random states
    are left as found, by exceptions too. Frozen parameters are left out, parameters without influence on the loss have
    zero rows, shared ones count once. Coordinates lie in the order of ``model.named_parameters()``: see ``layout``.

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
        memory: Bytes for the graphs that a session keeps; 0 keeps none. Default: a quarter of what is free when the
            session begins.

    Attributes:
        shape: (d, d), d being the number of trainable parameters.
        dtype: Type of the vectors: that of the parameters, float32 for parameters of lower precision.
        device: Device of the vectors: that of the first parameter.
        layout: Splits a flat vector into named tensors and back.

    Raises:
        ArgumentError: No parameter requires gradients.
        ArgumentTypeError: An argument is of the wrong kind, or ``batches`` can be read only once.
    """

    _BUILD = 1.0  # a forward and a backward pass

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        mode: Mode = "eval",
        parameters: Mapping[str, Tensor] | None = None,
        memory: int | None = None,
    ) -> None:
        if memory is not None:
            whole("memory", memory, minimum=0, hint="It counts the bytes that graphs may take during a session.")
        self._set_up(EmpiricalRisk(model, loss_fn, batches, mode=mode, parameters=parameters), memory)

    def _set_up(self, risk: EmpiricalRisk, memory: int | None) -> None:
        self.risk = risk
        self.layout = risk.layout
        self.shape = (self.layout.numel, self.layout.numel)
        self.device = risk.device
        types = (parameter.dtype for parameter in risk.parameters.values())
        self.dtype: torch.dtype = reduce(torch.promote_types, types, torch.float32)
        self._memory = memory
        self._session: _Session | None = None

    def related(self, kind: type[Kind]) -> Kind:
        """Return the operator of another kind on the same risk; what both spend is counted together.

        Example:
            >>> from flatmin.curvature import Hessian
            >>> from flatmin.curvature.operators import GGN
            >>> H = Hessian(nn.Linear(2, 1), nn.functional.mse_loss, [(torch.ones(1, 2), torch.ones(1, 1))])
            >>> H.related(GGN)
            GGN(Linear, 3 parameters)
        """
        operator = kind.__new__(kind)
        operator._set_up(self.risk, self._memory)
        return operator

    @abstractmethod
    def _prepare(self, part: BatchLoss) -> Product:
        """Return what multiplies vectors by the operator of this batch."""

    @property
    def gradients(self) -> float:
        """What was spent on products so far, in gradients of all the data."""
        return self.risk.gradients

    @property
    def meter(self) -> object:
        """The risk, which counts for all operators on it."""
        return self.risk

    def __repr__(self) -> str:
        """Show of what it is."""
        return f"{type(self).__name__}({type(self.risk.model).__name__}, {self.shape[0]} parameters)"

    @contextmanager
    def session(self) -> Iterator[None]:
        """Inside this context the graphs of the batches are kept between products, as far as memory allows."""
        if self._session is not None:
            yield
            return
        budget = int(_SHARE * available_memory(self.device)) if self._memory is None else self._memory
        self._session = _Session(budget)
        try:
            yield
        finally:
            self._session = None

    def _multiply(self, columns: Tensor) -> Tensor:
        total, count = torch.zeros_like(columns), 0
        with self._evaluating():
            for product, size, keep in self._products():
                self._accumulate(product, columns, total, weight=size, keep=keep)
                count += size
        total /= count
        if not total.isfinite().all():
            raise NonFiniteError(
                f"the product with the {type(self).__name__} holds NaN or infinity although loss and weights are "
                "finite: a second derivative does not exist or overflows (sqrt, norm or a power at 0?). Add a small "
                "eps there."
            )
        return total

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.risk.observed(differentiable=True))
            self.risk.check_weights()
            yield

    def _products(self) -> Iterator[tuple[Product, int, bool]]:
        """Yield for every batch what multiplies vectors, its size, and whether it is used again."""
        session = self._session
        if session is None:
            for part in self.risk.losses():
                self.risk.spend(self._BUILD, part.size)
                yield self._prepare(part), part.size, False
                del part  # or its graph would stay while the next one is built
            return
        if session.place != (place := self.risk.place()):  # the weights moved: graphs of other weights are of no use
            self._session = session = _Session(session.budget)
            session.place = place
        for product, size in session.kept:
            yield product, size, True
        if session.complete:
            return
        known = len(session.kept)
        for part in self.risk.losses(skip=known):
            self.risk.spend(self._BUILD, part.size)
            product, size = self._prepare(part), part.size
            del part
            yield product, size, self._keep(session, product, size)
            del product
        session.complete = not session.full

    def _keep(self, session: _Session, product: Product, size: int) -> bool:
        """Take a batch's graph into the session if it fits and all before it did; tell whether it was."""
        if not session.full:
            taken = graph_bytes(product.roots)
            if session.used + taken <= session.budget:
                session.used += taken
                session.kept.append(_Kept(product, size))
                return True
            session.full = True
        return False

    def _accumulate(self, product: Product, columns: Tensor, total: Tensor, *, weight: int, keep: bool) -> None:
        """Add ``weight`` times the product of one batch with ``columns`` to ``total``."""
        parameters = list(self.risk.parameters.values())
        last = columns.shape[1] - 1
        for j in range(columns.shape[1]):
            pieces = columns[:, j].split(self.layout.sizes)
            vector = [piece.view_as(p).to(p) for piece, p in zip(pieces, parameters, strict=True)]
            image = product(vector, keep=keep or j < last)
            for into, part in zip(total[:, j].split(self.layout.sizes), image, strict=True):
                if part is not None:
                    into.add_(part.detach().reshape(-1).to(self.device, self.dtype), alpha=weight)
        self.risk.spend(product.cost * columns.shape[1], weight)


def loss_gradients(part: BatchLoss, parameters: Mapping[str, Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of a batch's loss with their graph, None for parameters without influence.

    Raises:
        ArgumentTypeError: The loss depends on no parameter, or a gradient is sparse.
    """
    check_depends(part.loss)
    gradients = torch.autograd.grad(part.loss, list(parameters.values()), create_graph=True, allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise ArgumentTypeError(
                f"parameter {name!r} has a sparse gradient, which has no second derivative. Make it dense: "
                "embedding.sparse = False."
            )
    return gradients
