"""The in-place driver: a flow over the parameters of a model, evaluated by whoever runs forward and backward.

One :class:`Evaluation` is one run of a flow. It hands out :class:`Probe` context managers, one for each point that the
flow wants evaluated; within one, the weights stand at that point, and after the last the direction is in ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

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
        displacement: Where the point lies, seen from the weights; a vector is let go once the weights are there.
        weight: Share of this point's gradient in the direction; None where the method is not linear in the gradients.
    """

    def __init__(self, evaluation: Evaluation, displacement: Displacement, weight: float | None = None) -> None:
        self.displacement: Displacement | None = displacement
        self.weight = weight
        self._evaluation = evaluation
        self._state: Literal["new", "entered", "done", "failed"] = "new"

    def __enter__(self) -> Self:
        if self._state != "new" or self.displacement is None:
            raise ProbeError("A probe was entered twice. Each stands for one evaluation; take the next from the loop.")
        self._state = "failed"  # until what follows has worked
        self._evaluation.enter(self.displacement)
        if isinstance(self.displacement, Vector):
            self.displacement = None
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
                "Let the exception leave the loop and start a new one; the weights are clean."
            )


class Evaluation:
    """One run of a flow over parameters in place.

    Args:
        parameters: Position to parameter; those that take gradients.
        modules: The modules around them.
        buffers: When their buffers move, see :class:`~flatmin.perturb.buffers.Buffers`.
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
        modules: Sequence[nn.Module] = (),
        buffers: str = "all",
        common_randomness: bool = True,
        owned: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.status: Literal["open", "inside", "finished", "abandoned"] = "open"
        self.owned = owned
        self._hides = owned  # whether what .grad holds is set aside during a probe
        self._parameters = parameters
        self._has_begun = False
        self._displacer = Displacer(parameters, modules)
        self._buffers = Buffers(buffers, modules)
        self._common_randomness = common_randomness
        self._observer = observer
        self._next: Displacement | None = None
        self._random: RandomState | None = None
        self._aside: grads.Gradients = {}
        self._before: Alignments = {}
        self._devices = {p.device for p in parameters.values()}
        self._is_sharded = any(is_sharded(p) for p in parameters.values())
        self._total = ShardedTotal(parameters) if self._is_sharded else plain_total

    def probes(self, start: Callable[[], Flow]) -> Generator[Probe]:
        """Yield the probes of ``start()``. However the loop ends, the weights are back when it is let go of.

        Args:
            start: Starts the flow; called twice where the flow turns out not to be linear.
        """
        try:
            steps = plan(start())
            if steps is None:
                yield from self._live(start())
            else:
                yield from self._planned(steps)
            self._displacer.release()
            self.status = "finished"
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End an unfinished evaluation: put the weights back and drop the gradients, which are no direction."""
        if self.status in ("open", "inside"):
            self.status = "abandoned"
            self._displacer.release()
            grads.drop(self._parameters)
            self._aside, self._before = {}, {}

    @property
    def collects(self) -> bool:
        """Whether ``.grad`` holds, or is about to hold, gradients of some of the points."""
        return not self.owned and self._has_begun and self.status in ("open", "inside")

    def _require_open(self) -> None:
        if self.status in ("abandoned", "finished"):
            raise ProbeError(
                "This probe's loop has ended: it was left before its end, or another step, loop or checkpoint came in "
                "between. The weights are clean and the unfinished gradients were dropped; start a new loop."
            )

    def _probe(self, displacement: Displacement, weight: float | None = None) -> Generator[Probe]:
        probe = Probe(self, displacement, weight)
        del displacement  # which may be the size of the model
        yield probe
        self._require_open()
        probe.require_done()

    def _planned(self, steps: tuple[Step, ...]) -> Generator[Probe]:
        if self.owned:
            grads.drop(self._parameters)
        self._common_randomness &= len(steps) > 1
        unit = 1.0  # times what .grad holds is the direction so far
        for number, (displacement, weight) in enumerate(steps):
            if number:
                self._require_gradients(equal_weights=weight == unit)
            grads.rescale(self._parameters, unit / weight)
            self._before = {i: a * (unit / weight) for i, a in self._before.items()}
            unit = weight
            self._next = steps[number + 1].displacement if number + 1 < len(steps) else None
            yield from self._probe(displacement, weight)
        self._require_gradients(equal_weights=True)
        grads.rescale(self._parameters, unit)

    def _require_gradients(self, *, equal_weights: bool) -> None:
        if any(parameter.grad is not None for parameter in self._parameters.values()):
            return
        if not self._is_sharded:
            raise ProbeError(
                "No parameter has a gradient after a probe. Likely causes: loss.backward() was not called inside "
                "`with probe:`, the gradients were cleared there, or a hook steps and clears them during backward, "
                "which no method with several evaluations can work with. The weights are as they were."
            )
        if not equal_weights:
            raise ProbeError(
                "FSDP2 keeps back the gradients (set_requires_gradient_sync(False)), but the points of this method "
                "have unequal weights (clean_weight), which have to be applied to each. Synchronise every pass."
            )

    def _live(self, flow: Flow) -> Generator[Probe]:
        prior = {} if self.owned else grads.take(self._parameters)
        grads.drop(self._parameters)
        self._hides, self._observer, self._next = True, None, None
        displacement: Displacement = next(flow)
        while True:
            handed = self._probe(displacement)
            del displacement
            yield from handed
            self._require_live_gradients()
            evaluated = grads.Evaluated(grads.take(self._parameters), self._total)
            try:
                with torch.no_grad():
                    displacement = flow.send(evaluated.vector)
                del evaluated  # before the next backward pass
            except StopIteration as stop:
                direction: Vector = stop.value
                break
        for i, gradient in evaluated.restored(direction, self._parameters).items():
            self._parameters[i].grad = gradient
        grads.put_back(self._parameters, prior)

    def _require_live_gradients(self) -> None:
        self._require_gradients(equal_weights=True)
        if all(parameter.grad is None for parameter in self._parameters.values()):
            raise ProbeError(
                "FSDP2 keeps back the gradients (set_requires_gradient_sync(False)), but this method has to see each. "
                "Synchronise every pass, or take a method that is linear in the gradients (NSO, WPSGD)."
            )

    def enter(self, displacement: Displacement) -> None:
        """Move the weights to ``displacement`` and make the evaluation ready."""
        self._require_open()
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
        self.status, self._has_begun = "inside", True
        if self._hides:
            self._aside = grads.take(self._parameters)
        elif self._observer is not None and isinstance(displacement, Draw) and not self._before:
            self._before = self._alignments()

    def exit(self, displacement: Displacement | None, *, failed: bool) -> None:
        """Settle the buffers and the gradients; put the weights back unless their mirror image is next."""
        was_inside = self.status == "inside"
        self.status = "open" if was_inside else self.status
        if failed or not was_inside:
            self._displacer.restore()
            return
        try:
            self._buffers.after_evaluation()
            if self._observer is not None and isinstance(displacement, Draw):
                self._observe(displacement, self._observer)
            if self._hides:
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
        mirrored = not self._hides and self._next == -draw
        self._before = {i: -a for i, a in after.items()} if mirrored else {}

    def _alignments(self) -> Alignments:
        return self._displacer.alignments({i: local(g) for i, g in grads.current(self._parameters).items()})
