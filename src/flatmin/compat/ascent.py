"""What happens between the two calls: the weights stand at w + e, and a snapshot waits to go back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from flatmin import flows
from flatmin.distributed import local
from flatmin.perturb import Evaluation, Flow
from flatmin.perturb import gradients as grads
from flatmin.streams import Stream
from flatmin.vectors import PerParameter, Scale, is_zero


def two_call(stream: Stream, *, rho: Scale, adaptive: PerParameter[float]) -> Flow:
    """Return the flow of SAM, or that of ASAM where any parameter is adaptive, with η = 0 there and T = 1 elsewhere."""
    if is_zero(adaptive):
        return flows.sam(stream, rho=rho)
    eta = PerParameter(tuple(1.0 - flag for flag in adaptive.values))
    return flows.asam(stream, rho=rho, eta=eta, adaptive=adaptive)


class Ascent:
    """An evaluation between the two calls. Nothing in it refers to the optimizer, with which it ends."""

    def __init__(
        self, owner: Optimizer, evaluation: Evaluation, start: Callable[[], Flow], parameters: Mapping[int, Tensor]
    ) -> None:
        self._evaluation, self._parameters = evaluation, parameters
        self._loop = evaluation.probes(start)
        self._writes: list[int] = []
        # The registry holds the ascent, so that a collection of cycles cannot take its parts in another order.
        finalizer = weakref.finalize(owner, self._let_go)
        finalizer.atexit = False
        self.disown: Callable[[], object] = finalizer.detach

    def climb(self, *, keeps_gradients: bool) -> None:
        """Have the flow see the gradients at hand, and enter its second probe."""
        first = grads.take(self._parameters)
        with next(self._loop):
            grads.put_back(self._parameters, first)
        self._probe = next(self._loop)
        self._probe.__enter__()
        self._writes = self._count()
        if keeps_gradients:
            grads.put_back(self._parameters, first)

    def descend(self) -> None:
        """Leave the second probe; ``.grad`` then holds the direction."""
        self._probe.__exit__(None, None, None)
        next(self._loop, None)

    def _count(self) -> list[int]:
        return [local(parameter)._version for parameter in self._parameters.values()]

    def _let_go(self) -> None:
        if self._count() != self._writes:
            self._evaluation.status = "abandoned"  # someone else trains these weights: what is kept here is outdated
        self._loop.close()
