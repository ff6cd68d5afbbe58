"""What every way to a trace is given, what it may spend, and what it hands back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatmin.curvature.results import TraceEstimate
from flatmin.curvature.trace.sampling import SMALL_SAMPLE, Samples

if TYPE_CHECKING:
    from flatmin.curvature.counted import Counted
    from flatmin.curvature.results import EigenPairs
    from flatmin.curvature.trace.probes import Probes
    from flatmin.curvature.trace.sampling import Goal


@dataclass
class Setup:
    """An operator whose trace is asked for, or a part of it; probes; and a goal.

    Args:
        A: The operator.
        probes: The probes.
        goal: What is to be reached.
        width: Vectors multiplied at once.
        rank: Dimension of a sketch or of a deflated space, if it is prescribed.
        k: How many eigenvalues are wanted as well.
        known: What has to be added to the trace of A.
        known_stderr: Its standard error.
        accounts: The operators that serve it, the first being the one that was asked about.
        price: Gradients that a product with A costs, where budgets are gradients.
        limit: Gradients that may be spent in all; without it, the budget counts products.
        sample_price: What a further sample costs, in products.
    """

    A: Counted
    probes: Probes
    goal: Goal
    width: int
    rank: int | None = None
    k: int = 0
    known: float = 0.0
    known_stderr: float = 0.0
    accounts: list[Counted] = field(default_factory=list)
    price: float = 1.0
    limit: float | None = None
    sample_price: float = 1.0

    def __post_init__(self) -> None:
        self.accounts = self.accounts or [self.A]

    @property
    def gradients(self) -> float | None:
        """What was spent so far, in gradients; None for operators that do not count."""
        first, *others = self.accounts
        spent = first.cost()["gradients"]
        # All of them share one meter, but each knows for itself what a journal has spared it.
        return None if spent is None else spent + sum(other.recalled for other in others)

    @property
    def spent(self) -> float:
        """What was spent so far, in what the budget counts."""
        if self.limit is not None:
            return self.gradients or 0.0
        return sum(account.num_matvecs for account in self.accounts)

    @property
    def left(self) -> int:
        """The number of products with A that may still be spent."""
        if self.limit is None:
            return max(0, self.goal.budget - int(self.spent))
        return max(0, math.floor((self.limit - self.spent) / self.price + 1e-6))

    @property
    def samples_left(self) -> int:
        """The number of samples that may still be drawn."""
        return int(self.left / self.sample_price)

    def needed(self, samples: Samples) -> float:
        """Return the number of samples that the goal is expected to take."""
        variance = samples.expected_variance()
        if variance == 0:
            return 0.0
        allowed = self.goal.tolerance(samples.value) ** 2 - samples.offset_stderr**2
        return max(variance / allowed, samples.fewest()) if allowed > 0 else math.inf

    def expected(self, samples: Samples) -> float:
        """Return what is expected to be still spent, in products; without a tolerance, the squared error at the end.

        Where the budget does not suffice, all of it, times what would be needed relative to what there is.
        """
        have = len(samples.forms)
        if not self.goal.asked:
            return samples.expected_variance() / max(1, have + self.samples_left)
        needed = self.needed(samples)
        more = max(needed, SMALL_SAMPLE) - have
        if more <= self.samples_left:
            return more * self.sample_price
        return self.left * needed / max(1, have + self.samples_left)

    def estimate(
        self,
        found: Samples | float,
        *,
        method: str,
        reason: str = "",
        converged: bool = True,
        eigenvalues: EigenPairs | None = None,
    ) -> TraceEstimate:
        """Return the estimate that samples make, or the trace itself, with its cost."""
        costs = [account.cost() for account in self.accounts]
        return TraceEstimate(
            value=found.value if isinstance(found, Samples) else found,
            stderr=found.stderr if isinstance(found, Samples) else self.known_stderr,
            samples=found.total if isinstance(found, Samples) else None,
            num_matvecs=sum(cost["num_matvecs"] for cost in costs),
            gradients=self.gradients,
            route=", ".join(dict.fromkeys(cost["route"] for cost in costs if cost["route"])),
            seed=self.probes.seed,
            converged=converged,
            method=method,
            reason=reason,
            eigenvalues=eigenvalues,
        )
