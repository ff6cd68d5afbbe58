r"""The empirical risk: the mean loss over all examples, as a function of the weights.

.. math:: f(W) = \frac1N \sum_b n_b\, \ell_b(W), \qquad N = \sum_b n_b

with n_b examples in batch b and ℓ_b their mean loss: a short last batch counts by its size.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from flatmin.checks import choice
from flatmin.curvature.batch import Batch, BatchLoss, num_examples
from flatmin.curvature.data import (
    Forward,
    LossFunction,
    as_module,
    compiled,
    generators_of,
    prepared,
    reiterable,
    unwrapped,
)
from flatmin.curvature.layout import Layout, check_embeddings, still_rows, trainable_parameters
from flatmin.curvature.observe import Mode, observing
from flatmin.curvature.sameness import Sameness
from flatmin.distributed import is_sharded, local, mesh_groups, reshard, sharded_modules, sum_over_ranks
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from flatmin.perturb.randomness import RandomState

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping


class EmpiricalRisk:
    """The mean loss of a model over data, which is evaluated without leaving a trace.

    Every pass over the data starts from the random states that were found when this object was made: a shuffling
    loader, random augmentation and dropout (in mode ``"current"``) do the same in every pass, so that all passes see
    one function. Afterwards the states are put back.

    Args:
        model: The model, or a function of (parameters, inputs). A compiled one is run as such in forward passes alone;
            otherwise its original module is, which alone has second derivatives.
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for batches that are mappings; the
            mean over the examples of the batch.
        batches: Re-iterable batches, see :mod:`flatmin.curvature.data`.
        mode: ``"eval"``: every module in evaluation mode; ``"current"``: as it stands.
        parameters: Where to measure, by name, for a model that is a function.
        sharded: Whether parameters may be split over ranks. Ranks then hold batches of their own, as many each.
        group: The process group whose ranks hold batches of their own, over which :meth:`mean` is taken.

    Attributes:
        groups: Process groups over whose ranks the batches are split: that of the call, or those of sharded parameters.

    Raises:
        ArgumentError: No parameter requires gradients.
        ArgumentTypeError: ``model``, ``loss_fn`` or ``batches`` are of the wrong kind.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        mode: Mode = "eval",
        parameters: Mapping[str, Tensor] | None = None,
        sharded: bool = False,
        group: Any = None,
    ) -> None:
        module = as_module(model, parameters)
        if not callable(loss_fn):
            raise ArgumentTypeError(f"loss_fn is {loss_fn!r}, but a function of (output, targets) is needed.")
        self.model: nn.Module = unwrapped(module)
        reshard(sharded_modules(self.model.modules()))  # after an evaluation, the root holds gathered copies instead
        check_embeddings(self.model)
        self.parameters: dict[str, nn.Parameter] = trainable_parameters(self.model, sharded=sharded)
        self.groups: list[Any] = mesh_groups(self.parameters.values()) or ([] if group is None else [group])
        self.layout: Layout = Layout.of(self.parameters)
        self._still = still_rows(self.model, self.parameters)
        self.device: torch.device = next(iter(self.parameters.values())).device
        self._mode: Mode = "eval" if choice("mode", mode, get_args(Mode)) == "eval" else "current"
        self._batches = reiterable(batches)
        self._forward = Forward(self.model, loss_fn, compiled(module))
        self._generators = generators_of(batches)
        self._start = self._random_states()
        coarsest = max((p.dtype for p in self.parameters.values()), key=lambda dtype: torch.finfo(dtype).eps)
        self._same = Sameness(torch.finfo(coarsest).eps ** 0.5)
        self._work = 0.0  # in gradients of one example

    @contextmanager
    def observed(self, *, differentiable: bool = False, once: bool = False) -> Iterator[None]:
        """Be inside this context to call :meth:`losses` and :meth:`mean`; leaving it undoes all traces."""
        with self.aside(), observing(self.model, mode=self._mode, differentiable=differentiable, once=once):
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaving this context puts the random states back, so that a pass over the data goes on as if nothing was."""
        found = self._random_states()
        try:
            yield
        finally:
            self._set_random_states(found)

    def losses(self, *, finite: bool = True, skip: int = 0) -> Iterator[BatchLoss]:
        """Yield each batch with its mean loss.

        Args:
            finite: Whether a loss that is not finite is an error.
            skip: Batches at the beginning that are read but not evaluated.

        Raises:
            DataError: No batches, none this time, another number of examples than last time, other data at unchanged
                weights, or a batch of unknown form.
            NonFiniteError: A loss is NaN or infinite.
        """
        totals = []
        for item in self.read():
            if item.index < skip:
                continue
            part = self.evaluate(item, finite=finite, again=False)
            totals.append(part.size * float(part.loss.detach()))
            yield part
            del part  # or its graph would stay while the next one is built
        self._same.compare(self.place(), totals, skip)

    def read(self) -> Iterator[Batch]:
        """Yield each batch without evaluating it, from the random states in which every pass starts.

        Raises:
            DataError: As for :meth:`losses`, but for the data's content.
        """
        self._set_random_states(self._start)
        count = 0
        for index, item in enumerate(self._batches):
            content = prepared(item, index, self.device)
            count += (size := num_examples(content))
            yield Batch(content, size, index, self._random_states()[0])
        self._same.count(count)

    def evaluate(self, item: Batch, *, finite: bool = True, again: bool = True) -> BatchLoss:
        """Return a batch with its mean loss at the present weights, from the random states it was read at.

        These are put back if it is evaluated ``again``, since when numbers may have been drawn.

        Raises:
            NonFiniteError: The loss is NaN or infinite, and ``finite`` is asked for.
        """
        if again:
            item.start.restore()
        output = self._forward.output(item.content)
        loss = self._forward.loss(output, item.content)
        value = float(loss.detach())
        if finite and value - value != 0.0:
            raise NonFiniteError(f"the loss of batch {item.index} is {value}. {self._blame()}")
        return BatchLoss(item.content, item.size, item.index, item.start, loss, output)

    def mean(self, *, finite: bool = True) -> float:
        """Return f(W), summed over batches and ranks in float64; errors as in :meth:`losses`."""

        def total() -> Tensor:
            parts = [(part.size * float(part.loss.detach()), part.size) for part in self.losses(finite=finite)]
            sums = (math.fsum(column) for column in zip(*parts, strict=True))
            return torch.tensor(list(sums), dtype=torch.float64)

        value, count = sum_over_ranks(total, self.groups).tolist()
        return value / count

    def output(self, part: BatchLoss) -> Any:
        """Return what the model makes of the batch of ``part`` at its present weights, from the same random states."""
        part.start.restore()
        return self._forward.output(part.content)

    def loss(self, output: Any, part: BatchLoss) -> Tensor:
        """Return the loss of ``output`` for the batch of ``part``, 0-dim."""
        return self._forward.loss(output, part.content)

    def spend(self, cost: float, size: int) -> None:
        """Count work of ``cost`` gradients on ``size`` examples."""
        self._work += cost * size

    @property
    def num_examples(self) -> int | None:
        """N, once the data were read; None before."""
        return self._same.num_examples

    @property
    def gradients(self) -> float:
        """What was counted so far, in gradients of all the data."""
        return self._work / self.num_examples if self.num_examples else 0.0

    def moving(self, columns: Tensor) -> Tensor:
        """Return vectors (d, m) without what derivatives do not see though it moves outputs: embeddings of padding."""
        if not self._still:
            return columns
        columns = columns.clone()
        for name, row in self._still.items():
            columns[self.layout.slices[name]].unflatten(0, self.layout.shapes[name])[row] = 0.0
        return columns

    def check_weights(self) -> None:
        """Raise NonFiniteError if a parameter holds NaN or infinity, ArgumentError if one was frozen since."""
        if frozen := [name for name, parameter in self.parameters.items() if not parameter.requires_grad]:
            raise ArgumentError(
                f"parameter {frozen[0]!r} was frozen after this operator was made. Make the operator anew, or thaw it: "
                "parameter.requires_grad_(True)."
            )
        weights = {name: p.detach() for name, p in self.parameters.items() if p.numel()}
        if not weights or nn.utils.get_total_norm(weights.values(), float("inf")).isfinite():
            return
        name = next(name for name, weight in weights.items() if not weight.isfinite().all())
        raise NonFiniteError(
            f"parameter {name!r} holds NaN or infinity, so there is nothing to measure. Likely cause: training "
            "diverged. Load weights from before, or train with a smaller learning rate or sigma."
        )

    def _blame(self) -> str:
        self.check_weights()
        return (
            "The weights are finite, so look at the data of this batch (NaN in the inputs? all targets ignored, and a "
            "mean over none?) and the loss (log of 0?)."
        )

    def place(self) -> Hashable:
        """Return what changes whenever the weights do, or the modes that count: memory, writes, and norms.

        Writes through ``.data`` are counted nowhere, and so the norms tell.
        """
        shards = [local(p.detach()) if is_sharded(p) else p.detach() for p in self.parameters.values()]
        pairs = zip(shards, self.parameters.values(), strict=True)
        writes = ((shard.data_ptr(), shard._version, p._version) for shard, p in pairs)
        modes = (m.training for m in self.model.modules()) if self._mode == "current" else ()
        norms = torch.stack([norm.to(self.device) for norm in torch._foreach_norm(shards)])  # read all at once
        return (*writes, *norms.tolist(), *modes)

    def _random_states(self) -> tuple[RandomState, list[Tensor]]:
        devices = {p.device for p in self.parameters.values()}
        return RandomState.capture(devices), [generator.get_state() for generator in self._generators]

    def _set_random_states(self, states: tuple[RandomState, list[Tensor]]) -> None:
        states[0].restore()
        for generator, state in zip(self._generators, states[1], strict=True):
            generator.set_state(state)
