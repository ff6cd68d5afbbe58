"""The list of loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from peers.adapters import Peer
from peers.outcome import Outcome

Check = Callable[[Peer], Outcome]

# Sums in another order, in float64, may differ by rounding; some peers take norms in float32. Defects are far larger.
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Loop:
    """One row: a loop and the property that is checked.

    Args:
        key: Its name in files.
        group: Heading it stands under.
        title: A few words for the table.
        claim: The property, as a sentence.
        tolerance: Largest difference of any weight that still counts as equal; 0 is bit for bit, None where the
            property is not about numbers.
        check: Looks whether a peer has it.
    """

    key: str
    group: str
    title: str
    claim: str
    tolerance: float | None
    check: Check


LOOPS: list[Loop] = []
GROUPS = ("Exactness", "Calling convention", "Training loops", "State", "Parameters", "Two ranks")


def rows() -> list[Loop]:
    """Return the loops in the order of the table."""
    return sorted(LOOPS, key=lambda row: GROUPS.index(row.group))


def loop(group: str, title: str, claim: str, tolerance: float | None = 0.0) -> Callable[[Check], Check]:
    """Enter the decorated check into the list."""

    def enter(check: Check) -> Check:
        LOOPS.append(Loop(check.__name__, group, title, claim, tolerance, check))
        return check

    return enter
