"""The in-place driver: a flow over the parameters of a model, evaluated by whoever runs forward and backward.

One :class:`Evaluation` is one run of a flow. It hands out :class:`Probe` context managers, one for each point that the
flow wants evaluated; within one, the weights stand at that point, and after the last the direction is in ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor

from flatmin.distributed import ShardedTotal, is_sharded, local
from flatmin.errors import ProbeError
from flatmin.perturb import gradients as grads
from flatmin.perturb.buffers import Buffers
from flatmin.perturb.displace import Displacer
from flatmin.perturb.flow import Displacement, Draw, Flow, Step, Vector, plan
from flatmin.perturb.randomness import RandomState
from flatmin.vectors import plain_total

Alignments = Mapping[int, Tensor]
Observer = Callable[[Draw, Alignments], None]
"""Told, of each noisy evaluation, the inner product of its gradient with its displacement, for each parameter."""


class Probe:
    """One point at which to run forward and backward, once, inside ``with probe:``.

    Leaving the block by an exception puts the weights back, bit for bit.

    Attributes:
        displacement: Where the point lies, seen from the weights.
        weight: Share of this point's gradient in the direction; None where the method is not linear in the gradients.
    """

    def __init__(self, evaluation: Evaluation, displacement: Displacement, weight: float | None = None) -> None:
        self.displacement = displacement
        self.weight = weight
        self._evaluation = evaluation
        self._state: Literal["new", "entered", "done", "failed"] = "new"

    def __enter__(self) -> Self:
        if self._state != "new":
            raise ProbeError("A probe was entered twice. Each stands for one evaluation; take the next from the loop.")
        self._state = "failed"  # until what follows has worked
        self._evaluation.enter(self.displacement)
        self._state = "entered"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = "failed"
        self._evaluation.exit(self.displacement, failed=kind is not None)
        if kind is None:
            self._state = "done"

    def require_done(self) -> None:
        """Raise unless the probe was entered and left without an exception."""
        if self._state == "new":
            raise ProbeError(
                "A probe was not entered, so no gradient was computed at its point. Write\n"
                "    for probe in opt.probes():\n        with probe:\n            loss(...).backward()"
            )
        if self._state != "done":
            raise ProbeError(
                "The loop over probes went on after a probe had failed, so one of its gradients is missing. "
                "Let the exception leave the loop, zero the gradients and start a new loop; the weights are clean."
            )


class Evaluation:
    """One run of a flow over parameters in place.

    Args:
        parameters: Position to parameter; those that take gradients.
        buffers: What becomes of buffers.
        common_randomness: Give every evaluation the random numbers of the first, so that two points differ by their
            displacement alone (dropout masks, augmentations), and the global states end where one leaves them.
        owned: Whether ``.grad`` belongs to this evaluation, as under a closure that clears it: what it holds at the
            start of each probe is then not added to but set aside. Otherwise the direction is added to ``.grad``.
        observer: See :data:`Observer`; only a linear flow is observed.
    """

    def __init__(
        self,
        parameters: Mapping[int, Tensor],
        *,
        buffers: Buffers,
        common_randomness: bool = True,
        owned: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.finished = False
        self._parameters = parameters
        self._displacer = Displacer(parameters)
        self._buffers = buffers
        self._common_randomness = common_randomness
        self._owned = owned
        self._observer = observer
        self._next: Displacement | None = None
        self._random: RandomState | None = None
        self._aside: grads.Gradients = {}
        self._before: Alignments = {}
        self._devices = {p.device for p in parameters.values()}
        sharded = any(is_sharded(p) for p in parameters.values())
        self._total = ShardedTotal(parameters) if sharded else plain_total

    def probes(self, start: Callable[[], Flow]) -> Generator[Probe]:
        """Yield the probes of ``start()``; when the loop ends, by whatever way, the weights are back.

        Args:
            start: Starts the flow; called twice where the flow turns out not to be linear.
        """
        try:
            steps = plan(start())
            if steps is None:
                yield from self._live(start())
            else:
                yield from self._planned(steps)
            self.finished = True
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Put the weights back, whatever happened."""
        self._displacer.release()

    def _planned(self, steps: tuple[Step, ...]) -> Generator[Probe]:
        if self._owned:
            grads.take(self._parameters)
        self._common_randomness &= len(steps) > 1
        unit = 1.0  # times what .grad holds is the direction so far
        for number, (displacement, weight) in enumerate(steps):
            grads.rescale(self._parameters, unit / weight)
            self._before = {i: a * (unit / weight) for i, a in self._before.items()}
            unit = weight
            self._next = steps[number + 1].displacement if number + 1 < len(steps) else None
            probe = Probe(self, displacement, weight)
            yield probe
            probe.require_done()
        grads.rescale(self._parameters, unit)

    def _live(self, flow: Flow) -> Generator[Probe]:
        present = grads.take(self._parameters)
        prior = {} if self._owned else present
        self._owned, self._observer, self._next = True, None, None
        displacement: Displacement = next(flow)
        while True:
            probe = Probe(self, displacement)
            yield probe
            probe.require_done()
            evaluated = grads.Evaluated(grads.take(self._parameters), self._total)
            try:
                with torch.no_grad():
                    displacement = flow.send(evaluated.vector)
            except StopIteration as stop:
                direction: Vector = stop.value
                break
        for i, gradient in evaluated.restored(direction, self._parameters).items():
            self._parameters[i].grad = gradient
        grads.put_back(self._parameters, prior)

    def enter(self, displacement: Displacement) -> None:
        """Move the weights to ``displacement`` and make the evaluation ready."""
        if self._common_randomness:
            if self._random is None:
                self._random = RandomState.capture(self._devices)
            else:
                self._random.restore()
        try:
            self._displacer.displace(displacement)
        except BaseException:
            self._displacer.restore()
            raise
        if self._owned:
            self._aside = grads.take(self._parameters)
        elif self._observer is not None and isinstance(displacement, Draw) and not self._before:
            self._before = self._alignments()

    def exit(self, displacement: Displacement, *, failed: bool) -> None:
        """Settle the buffers and the gradients; put the weights back unless their mirror image is next."""
        if failed:
            self._displacer.restore()
            return
        try:
            self._buffers.after_evaluation()
            if self._observer is not None and isinstance(displacement, Draw):
                self._observe(displacement, self._observer)
            if self._owned:
                grads.put_back(self._parameters, self._aside)
                self._aside = {}
        except BaseException:
            self._displacer.restore()
            raise
        if not (isinstance(displacement, Draw) and self._next == -displacement):
            self._displacer.restore()

    def _observe(self, draw: Draw, observer: Observer) -> None:
        """Tell ``observer`` <g, u>: the inner product with what this evaluation added to ``.grad``."""
        after = self._alignments()
        observer(draw, {i: a - self._before[i] if i in self._before else a for i, a in after.items()})
        # What .grad holds now, against the mirror image: known without another product.
        mirrored = not self._owned and self._next == -draw
        self._before = {i: -a for i, a in after.items()} if mirrored else {}

    @torch.no_grad()
    def _alignments(self) -> Alignments:
        present = grads.current(self._parameters)
        if not present:
            return {}
        gradient = Vector({i: local(g) for i, g in present.items()})
        return gradient.inner_parts(self._displacer.offsets())
