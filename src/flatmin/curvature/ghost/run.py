"""The exact trace over the batches of the data: what is covered, what was summed, and what it cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.batch import Batch, check_depends
from flatmin.curvature.cut import cut
from flatmin.curvature.ghost.checks import bent, disagreeing, few, random_like, same
from flatmin.curvature.ghost.engine import BACKWARD, TRIED, Ghost, Structure
from flatmin.curvature.ghost.linearity import bypassing, linearity
from flatmin.curvature.ghost.outputs import OutputCurvature
from flatmin.curvature.ghost.passes import Passes
from flatmin.curvature.ghost.result import GGNTrace
from flatmin.curvature.ghost.uses import Graph
from flatmin.curvature.memory import available_memory
from flatmin.curvature.results import Estimate
from flatmin.errors import DataError, FlatminError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from flatmin.curvature.batch import BatchLoss
    from flatmin.curvature.ghost.passes import Limits
    from flatmin.curvature.risk import EmpiricalRisk
    from flatmin.streams import Stream

_SHARE = 0.1  # of the free memory, for what is kept between passes, and as much for gradients that wait for their norms
_TOGETHER = 16  # passes whose norms are taken together
_PILOT = 16  # examples times samples from which the standard error is first taken
_FORWARD = 1 / 3


class Run:
    """One pass over the data.

    Args:
        risk: The risk.
        limits: The most backward passes for one batch.
        rtol: Relative standard error at which sampling stops.
        stream: Where random numbers come from.
        memory: Bytes for what is kept between passes, and as many for what waits; None takes a share of what is free.
    """

    def __init__(
        self, risk: EmpiricalRisk, limits: Limits, rtol: float, stream: Stream, memory: int | None = None
    ) -> None:
        self._risk, self._limits, self._rtol, self._stream = risk, limits, rtol, stream
        self._memory = memory
        self._structure: Structure | None = None
        self._explored = 0  # examples that it was found on
        self._uncovered: dict[str, str] = {}  # the reason of each
        self._reached: set[str] = set()
        self._curved: set[str] = set()
        self._found: list[dict[str, Tensor]] = []  # a batch: traces of its examples, by parameter
        self._sizes: list[int] = []
        self._block_variances = dict.fromkeys(risk.parameters, 0.0)
        self._variance = 0.0
        self._passes, self._exact = 0, True

    def read(self) -> None:
        """Read all batches; errors as in :meth:`EmpiricalRisk.losses`. The risk must be observed."""
        for part in self._risk.losses():
            self._risk.spend(_FORWARD, part.size)
            check_depends(part.loss)
            try:
                self._add(part)
            except DataError as error:
                self._leave_out(self._risk.parameters, str(error))
            if len(self._uncovered) == len(self._risk.parameters):
                return
            del part

    def _add(self, part: BatchLoss) -> None:
        outputs = cut(part.output, part.loss)
        _check_rows(outputs, part.size)
        parameters, index = self._risk.parameters, part.index
        shape = linearity(outputs, parameters)
        self._reached |= shape.reached
        self._curved |= shape.curved
        self._leave_out(bypassing(part.loss, outputs, parameters), "the loss depends on it besides by the outputs")
        graph = Graph(outputs, parameters)
        if self._explored < min(2, part.size) or self._structure is None or not self._structure.describes(graph):
            self._structure = self._explore(part, outputs, graph)
        budget = int(_SHARE * available_memory(outputs[0].device)) if self._memory is None else self._memory
        ghost = Ghost(outputs, parameters, graph, self._structure, budget, without=self._uncovered)
        self._leave_out(
            shape.reached - set(ghost.covered),
            "there is no form of its gradients: an operation that is not known, or one on it before it meets data",
        )
        passes = Passes(OutputCurvature(part.loss, outputs, self._stream.child(0, index)), self._limits)
        together = max(1, min(_TOGETHER, budget // max(1, ghost.bytes_each())))
        traces = self._heads(ghost, passes, together) * part.size
        spent = passes.head
        if not passes.exact:
            samples = self._tail(ghost, passes, part, traces) * part.size
            spent += len(samples) * passes.sample
            traces = traces + samples.mean(0)
            self._exact = False
            for name, variance in zip(ghost.covered, samples.var(0).sum(1).tolist(), strict=True):
                self._block_variances[name] += variance / len(samples)
            self._variance += float(samples.sum(1).var(0).sum()) / len(samples)
        met = {name for name, row in zip(ghost.covered, traces, strict=True) if name in ghost.unproven and row.any()}
        self._leave_out(met, "no gradient reached it on trial, so that where its examples are could not be found out")
        self._passes = max(self._passes, spent)
        self._risk.spend(ghost.cost * spent, part.size)
        self._found.append(dict(zip(ghost.covered, traces.cpu(), strict=True)))
        self._sizes.append(part.size)

    def _heads(self, ghost: Ghost, passes: Passes, together: int) -> Tensor:
        """Return the traces (parameters, examples) of the columns that have a pass of their own."""
        total = ghost.zeros()
        for signs, cotangents in passes.heads(together):
            total = total + (ghost.norms(cotangents) * signs[:, None]).sum(0)
        return total

    def _tail(self, ghost: Ghost, passes: Passes, part: BatchLoss, head: Tensor) -> Tensor:
        """Return independent samples (samples, parameters, examples) of what the other columns add."""
        limit = max(2, (self._limits.passes - passes.head) // passes.sample)
        wanted, samples = min(limit, 1 + math.ceil(_PILOT / part.size)), []
        while len(samples) < wanted:
            drawn = passes.tail(self._stream.child(1, part.index, len(samples)))
            samples.append(sum((sign * ghost.norms([c])[0] for sign, c in drawn), torch.zeros_like(head)))
            if len(samples) == wanted < limit:
                totals = torch.stack(samples).sum(1) * part.size
                value = abs(float(head.sum() + totals.mean(0).sum()))
                stderr = float(totals.var(0).sum() / wanted) ** 0.5
                share = (self._risk.num_examples or part.size) / part.size
                allowed = self._rtol * value * share**0.5
                wanted = min(limit, max(wanted, math.ceil(wanted * (stderr / allowed) ** 2) if allowed else limit))
        return torch.stack(samples)

    def _explore(self, part: BatchLoss, outputs: Sequence[Tensor], graph: Graph) -> Structure:
        """Find out where the examples are, and try what the graph tells, on a few of them if the batch can be cut."""
        tried = self._few(part, outputs)
        apart = Graph(tried, self._risk.parameters)
        if apart.kinds != graph.kinds:
            tried, apart = outputs, graph
        self._explored = size = len(tried[0])
        cotangents = random_like(tried, self._stream.child(2))
        structure = Structure(tried, self._risk.parameters, apart, cotangents)
        ghost = Ghost(tried, self._risk.parameters, apart, structure, 2**30)
        wrong = disagreeing(ghost, structure, cotangents)
        self._leave_out(wrong, "the norms of its gradients came out wrong on trial, or mix examples")
        linear = [name for name in ghost.covered if name not in self._curved | set(wrong)]
        if bent(tried, self._risk.parameters, linear, self._stream.child(3)):
            self._curved |= self._reached
        self._risk.spend(len(structure.references) * (2 / 3 + 2 * BACKWARD) + 1 + 2 * 2, size)
        return structure

    def _few(self, part: BatchLoss, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs for the first examples by themselves, or those of the batch if they do not agree."""
        if part.size <= TRIED:
            return outputs
        item = Batch(few(part.content, part.size, TRIED), TRIED, part.index, part.start)
        try:
            with self._risk.aside():
                apart = self._risk.evaluate(item)
            tried = cut(apart.output, apart.loss)
        except (FlatminError, RuntimeError, ValueError, TypeError, IndexError, KeyError):
            return outputs  # not every batch can be cut
        self._risk.spend(_FORWARD, TRIED)
        return tried if same(tried, outputs) else outputs

    def _leave_out(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            self._uncovered.setdefault(name, reason)

    def result(self, before: float, seed: int) -> GGNTrace:
        """Return what was found.

        Args:
            before: What the risk had spent before, in gradients.
            seed: The seed.
        """
        covered = tuple(name for name in self._risk.parameters if name not in self._uncovered)
        count = sum(self._sizes)
        n = max(1, count)
        by_name = {name: torch.zeros(count, dtype=torch.float64) for name in covered}
        for name, x in by_name.items():  # a parameter that was not met in a batch has no part in it
            for found, rows in zip(self._found, x.split(self._sizes) if count else (), strict=True):
                rows.add_(found.get(name, 0.0))
        return GGNTrace(
            value=float(sum(x.sum() for x in by_name.values())) / n,
            stderr=self._variance**0.5 / n,
            blocks={
                name: Estimate(value=float(x.sum()) / n, stderr=self._block_variances[name] ** 0.5 / n)
                for name, x in by_name.items()
            },
            examples=sum(by_name.values(), torch.zeros(count, dtype=torch.float64)),
            covered=covered,
            uncovered=tuple(name for name in self._risk.parameters if name in self._uncovered),
            curved=tuple(name for name in covered if name in self._curved),
            exact=self._exact,
            reason=self._reason(),
            num_matvecs=self._passes,
            gradients=self._risk.gradients - before,
            seed=None if self._exact else seed,
            route="backward passes to the layers' outputs, ghost norms",
        )

    def _reason(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, reason in self._uncovered.items():
            reasons.setdefault(reason, []).append(name)
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


def _check_rows(outputs: Sequence[Tensor], size: int) -> None:
    """Raise DataError unless the loss is made of outputs with one row an example."""
    for z in outputs:
        if z.dim() == 0 or len(z) != size or z.grad_fn is None:
            raise DataError(
                f"the loss is made of outputs of shape {tuple(z.shape)}, but the batch has {size} examples, so that "
                "examples cannot be told apart"
            )
    if not outputs:
        raise DataError("the loss depends on the weights, but not by what the model returned")
