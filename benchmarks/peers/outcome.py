"""What a cell of the matrix can say, and the ways to come to it."""

from __future__ import annotations

import dataclasses
import enum
import math
import warnings
from collections.abc import Callable

LONGEST = 120  # characters of a message that is quoted


class Status(enum.StrEnum):
    """The four answers of a cell."""

    OK = "ok"
    WRONG = "wrong"
    RAISES = "raises"
    NOT_APPLICABLE = "not applicable"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One cell.

    Args:
        status: Whether the property holds.
        error: How far it is from holding, in the units of the weights, where that is a number.
        detail: What was seen, or why the property does not apply.
    """

    status: Status
    error: float | None = None
    detail: str = ""

    @property
    def amount(self) -> str:
        """The error in words, empty where there is none."""
        return "" if self.error is None else ("not finite" if math.isinf(self.error) else f"{self.error:.1g}")

    def __str__(self) -> str:
        """Return the answer in words, as the report prints it."""
        return ", ".join(part for part in (self.amount, self.detail) if part) or self.status.value


def ok(detail: str = "") -> Outcome:
    """The property holds."""
    return Outcome(Status.OK, None, detail)


def wrong(detail: str, error: float | None = None) -> Outcome:
    """The property does not hold."""
    return Outcome(Status.WRONG, error, detail)


def not_applicable(reason: str) -> Outcome:
    """Nothing is asked of this method here."""
    return Outcome(Status.NOT_APPLICABLE, None, reason)


def within(error: float, tolerance: float, detail: str = "") -> Outcome:
    """Judge a measured difference by a tolerance; 0 asks for equality, bit for bit."""
    return Outcome(Status.OK) if error <= tolerance else Outcome(Status.WRONG, error, detail)


def raised(error: BaseException) -> Outcome:
    """An exception, by the first line of its message."""
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Outcome(Status.RAISES, None, message if len(message) <= LONGEST else message[: LONGEST - 1] + "…")


def attempt(check: Callable[[], Outcome]) -> Outcome:
    """Run a check; what it raises is its outcome. Warnings are looked at only by the checks that ask for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return check()
        except Exception as error:  # noqa: BLE001  (whatever a peer raises is the finding)
            return raised(error)
