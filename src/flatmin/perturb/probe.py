"""A point at which to run forward and backward, as a context manager."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from flatmin.errors import ProbeError
from flatmin.perturb.flow import FULL_BATCH, Displacement
from flatmin.vectors import Vector

if TYPE_CHECKING:
    from flatmin.perturb.inplace import Evaluation


class Probe:
    """One point at which to run forward and backward, once, inside ``with probe:``.

    Leaving the block by an exception puts the weights back, bit for bit.

    Attributes:
        displacement: Where the point lies, seen from the weights; a vector is let go once the weights are there.
        weight: Share of this point's gradient in the direction; None where the method is not linear in the gradients.
        number: How many points of the step come before this one.
        total: How many points the step has; None where the method is not linear in the gradients.
        full_batch: Whether the method wants the gradient over all data here, and not that of the mini-batch.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        displacement: Displacement,
        *,
        number: int,
        total: int | None = None,
        weight: float | None = None,
    ) -> None:
        self.displacement: Displacement | None = displacement
        self.number: int = number
        self.total: int | None = total
        self.weight: float | None = weight
        self.full_batch: bool = displacement == FULL_BATCH
        self._evaluation = evaluation
        self._state: Literal["new", "entered", "done", "failed"] = "new"

    def __enter__(self) -> Self:
        if self._state != "new" or self.displacement is None:
            raise ProbeError("A probe was entered twice. Each stands for one evaluation; take the next from the loop.")
        self._state = "failed"  # until what follows has worked
        self._evaluation.enter(self.displacement)
        self._evaluation.current = self
        if isinstance(self.displacement, Vector):
            self.displacement = None
        self._state = "entered"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state, self._evaluation.current = "failed", None
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
