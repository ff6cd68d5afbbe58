"""The in-place driver: a flow over the parameters of a model, evaluated by whoever runs forward and backward.

One :class:`Evaluation` is one run of a flow. It hands out context managers (:class:`~flatmin.perturb.probe.Probe`), one
for each point that the flow wants evaluated; within one, the weights stand at that point, and after the last the
direction is in ``.grad``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatmin.distributed import GradientAveraging, ShardedTotal, is_sharded, local
from flatmin.errors import ProbeError
from flatmin.perturb import gradients as grads
from flatmin.perturb.buffers import Buffers
from flatmin.perturb.displace import Displacer, realize
from flatmin.perturb.flow import Displacement, Draw, Flow, Realized, Request, Step, Vector, Weights, plan
from flatmin.perturb.probe import Probe
from flatmin.perturb.randomness import RandomState
from flatmin.perturb.sweeps import Move, Snapshots
from flatmin.vectors import plain_total

Alignments = Mapping[int, Tensor]
Observer = Callable[[Draw, Alignments], None]
"""Told, of each noisy evaluation, the inner product of its gradient with its displacement, for each parameter."""


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
        loss_scale: Gives what the loss is multiplied by, or None, once the first backward pass has been. A flow that
            looks into gradients is sent those of the loss itself.
        keeps_nonfinite: Make the direction of a flow that is not linear NaN if any of its gradients was not finite,
            for flows that could lose it on the way: a very large ascent can end where gradients vanish.
        local_ascents: Number of evaluations of a flow that is not linear whose gradients stay on this rank.
        snapshots: Keeps the memory of the copy of the weights for the next evaluation.

    Attributes:
        extras: What the flow gave beside its direction, for an update rule of its own.
        current: The probe that is entered.
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
        loss_scale: Callable[[], Tensor | None] = lambda: None,
        keeps_nonfinite: bool = False,
        local_ascents: int = 0,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.status: Literal["open", "inside", "finished", "abandoned"] = "open"
        self.owned = owned
        self.extras: dict[str, Vector] = {}
        self.current: Probe | None = None
        self._hides = owned  # whether what .grad holds is set aside during a probe
        self._parameters = parameters
        self._has_begun = False
        self._displacer = Displacer(parameters, modules, snapshots=snapshots)
        self._buffers = Buffers(buffers, modules)
        self._common_randomness = common_randomness
        self._observer = observer
        self._loss_scale = loss_scale
        self._keeps_nonfinite = keeps_nonfinite
        self._local_ascents = local_ascents
        self._averaging = GradientAveraging(modules)
        self._waits = False  # whether the averaging of the next probe's gradients is left to a later one,
        self._folds = False  # and whether it is the one that those set aside come to
        self._is_local = False  # whether what .grad holds has not been averaged yet
        self._folding: grads.Folding | None = None
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

    def _probe(self, displacement: Displacement, **known: Any) -> Generator[Probe]:
        probe = Probe(self, displacement, **known)
        del displacement  # which may be the size of the model
        yield probe
        self._require_open()
        probe.require_done()

    def _planned(self, steps: tuple[Step, ...]) -> Generator[Probe]:
        if self.owned:
            grads.drop(self._parameters)
        self._common_randomness &= len(steps) > 1
        averages_once = self._averaging.can_be_put_off and (not self.owned or self._averaging.needs_every_parameter)
        unit = 1.0  # times what .grad holds is the direction so far
        for number, (displacement, weight) in enumerate(steps):
            self._waits = averages_once and number + 1 < len(steps)
            self._folds = averages_once and self.owned and not self._waits
            if number:
                self._require_gradients(equal_weights=weight == unit)
            grads.rescale(self._parameters, unit / weight)
            self._before = {i: a * (unit / weight) for i, a in self._before.items()}
            unit = weight
            self._next = steps[number + 1].displacement if number + 1 < len(steps) else None
            yield from self._probe(displacement, number=number, total=len(steps), weight=weight)
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
        request: Displacement | Request = next(flow)
        one_or_nan: Tensor | None = None
        number = 0
        evaluated = grads.Evaluated({}, self._total)
        while True:
            if isinstance(request, (Weights, Realized)):
                answer = self._answer(request)
            else:
                evaluated = grads.Evaluated({}, self._total)  # the last one is let go before the next backward pass
                self._waits = self._local_ascents > 0 and self._averaging.can_be_put_off
                self._local_ascents -= 1
                handed = self._probe(request, number=number)
                number += 1
                del request
                yield from handed
                self._require_live_gradients()
                evaluated = grads.Evaluated(grads.take(self._parameters), self._total, self._loss_scale())
                answer = evaluated.vector
                if self._keeps_nonfinite:
                    one_or_nan = 1 + 0 * answer.norm() if one_or_nan is None else one_or_nan + 0 * answer.norm()
            try:
                with torch.no_grad():
                    request = flow.send(answer)
                del answer
            except StopIteration as stop:
                direction: Vector
                direction, self.extras = stop.value if isinstance(stop.value, tuple) else (stop.value, {})
                break
        for i, gradient in evaluated.restored(direction, self._parameters, one_or_nan).items():
            self._parameters[i].grad = gradient
        grads.put_back(self._parameters, prior)

    def _answer(self, request: Request) -> Vector:
        self._displacer.restore()  # which has the parameters hold what is read here
        if isinstance(request, Realized):
            return realize(request.draw, self._parameters, self._total)
        return Vector({i: local(p).detach() for i, p in self._parameters.items()}, self._total)

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
            if self._folds:
                self._before = self._averaging.mean(self._displacer.alignments(self._local(self._aside)))
                self._folding = grads.Folding(self._parameters, self._aside)
        elif self._observer is not None and isinstance(displacement, Draw) and not self._before:
            self._before = self._alignments()
        if self._waits:
            self._averaging.put_off()

    def exit(self, displacement: Displacement | None, *, failed: bool) -> None:
        """Settle the buffers and the gradients; put the weights back unless their mirror image is next."""
        was_inside = self.status == "inside"
        self.status = "open" if was_inside else self.status
        is_unfinished = failed or not was_inside
        self._is_local = self._averaging.is_put_off
        try:
            if self._folding is not None:
                self._folding.end()
            if not is_unfinished:
                self._settle(displacement)
        except BaseException:
            self._displacer.restore()
            raise
        finally:
            self._averaging.resume()
        if is_unfinished or not self._is_mirrored(displacement):
            self._displacer.restore()

    def _is_mirrored(self, displacement: Displacement | None) -> bool:
        """Tell whether the next point is the mirror image of this one."""
        return isinstance(displacement, Draw) and self._next == -displacement

    def _settle(self, displacement: Displacement | None) -> None:
        self._buffers.after_evaluation()
        if self._observer is not None and isinstance(displacement, Draw):
            self._observe(displacement, self._observer)
        if self._hides:
            grads.put_back(self._parameters, self._aside)
            self._aside = {}

    def _observe(self, draw: Draw, observer: Observer) -> None:
        """Tell ``observer`` <g, u>: the inner product with what this evaluation added to ``.grad``.

        The same pass over the weights takes them where they have to be next.
        """
        then = "reflect" if self._is_mirrored(draw) else "restore"
        after = {} if self._averaging.is_kept_back else self._alignments(then)
        observer(draw, {i: a - self._before[i] if i in self._before else a for i, a in after.items()})
        # What .grad holds now, against the mirror image: known without another product.
        carries = not self._hides and self._is_mirrored(draw)
        self._before = {i: -a for i, a in after.items()} if carries else {}

    def _alignments(self, then: Move = "stay") -> Alignments:
        """Return <g, u> for what ``.grad`` holds, averaged over ranks as the gradients will be."""
        found = self._displacer.alignments(self._local(grads.current(self._parameters)), then=then)
        return self._averaging.mean(found) if self._is_local else found

    @staticmethod
    def _local(gradients: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {i: local(g) for i, g in gradients.items()}
