"""What is said of Figure 3, its numbers taken from the walks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flatmin_lab.recipes.escape2023.fig3_results import PAPER_START, shown
from flatmin_lab.recipes.escape2023.fig3_scales import LEARNING_RATE
from flatmin_lab.recipes.outcome import written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatmin_lab.recipes.escape2023.fig3_claims import Claim
    from flatmin_lab.recipes.escape2023.fig3_results import Chosen, Results


def text(found: Results, claims: Sequence[Claim]) -> str:
    """Say what the paper says, what was found, where the two agree and how they differ."""
    notes = [f"**Noted**: {' '.join(found.notes)}"] if found.notes else []
    return "\n\n".join((_PAPER, _start(found), _ends(found), _verdicts(claims), _radii(found), _differs(found), *notes))


_PAPER = (
    "**The paper**: ResNet-18 on CIFAR-10 from a start with all training data right and a test accuracy of "
    f"{PAPER_START:g} %, at the constant learning rate {LEARNING_RATE:g}, from which SGD does not escape. RS and SA "
    "raise the test accuracy while the training data stay right, SA faster and with a smaller ρ; batches of one are "
    "quite effective; the trace of the Hessian falls monotonically."
)


def _start(found: Results) -> str:
    start, fresh = found.start.look, found.start.fresh
    train, test, trace = (written(shown(start, m)) for m in ("train_accuracy", "test_accuracy", "trace"))
    gap = shown(fresh, "test_accuracy") - shown(start, "test_accuracy")
    return (
        f"**The start** ({found.scale.task}): {train} % of the training and {test} % of the test data right, "
        f"{written(gap)} points fewer than a network fitted from fresh weights "
        f"({written(shown(fresh, 'test_accuracy'))} %); trace {trace} against {written(shown(fresh, 'trace'))}."
    )


def _ends(found: Results) -> str:
    parts = []
    for one in found.chosen:
        gain, trace = found.over(one, found.start.look, "test_accuracy"), float(np.mean(one.ends("trace")))
        radius = f" (ρ = {one.rho:g})" if one.rho else ""
        parts.append(
            f"{one.way.label}{radius}: {written(gain.mean)} points [{written(gain.low)}, {written(gain.high)}], trace "
            f"{written(trace)}, training data {written(one.least_train_accuracy())} % right or more"
        )
    falling = [f"{_falling(one)} of {len(one.walks)} by {one.way.label}" for one in found.chosen if one.rho]
    return (
        f"**Here**, after {found.scale.num_steps:,} steps, gain in test accuracy over the start, mean of "
        f"{found.scale.seeds} seeds with Student's 95 % interval: {'; '.join(parts)}. The trace, measured "
        f"{found.scale.traces + 1} times on the way, falls from each time to the next in {', '.join(falling)}."
    )


def _falling(one: Chosen) -> int:
    """In how many walks the trace falls from each measurement to the next."""
    traces = [[look.trace for look in walk.looks if look.trace is not None] for walk in one.walks]
    return sum(bool((np.diff(each) < 0).all()) for each in traces)


def _verdicts(claims: Sequence[Claim]) -> str:
    kinds = ("agrees", "disagrees", "undecided")
    told = {kind: [claim.says for claim in claims if claim.verdict == kind] for kind in kinds}
    heads = {"agrees": "Agreed with the paper", "disagrees": "Not agreed", "undecided": "Undecided"}
    return " ".join(f"**{heads[kind]}**: {'; '.join(said) or 'nothing'}." for kind, said in told.items())


def _radii(found: Results) -> str:
    tuned = [one for one in found.chosen if one.tried]
    at_an_end = [one.way.label for one in tuned if one.rho in (min(one.tried), max(one.tried))]
    seeds = "one seed" if found.scale.tuning_seeds == 1 else f"{found.scale.tuning_seeds} seeds"
    return (
        f"**Radii** are not in the paper. They are chosen by validation accuracy at the end of a walk, on {seeds}, "
        f"from {len(tuned[0].tried)} values for every method and batch size. At an end of its grid: "
        f"{', '.join(at_an_end) or 'none'}."
    )


def _differs(found: Results) -> str:
    scale, how = found.scale, found.scale.misleading
    return (
        f"**What differs from the paper**: it names neither radii, steps nor seeds. Here: {scale.task}; the start "
        f"learned {how.copies} copies of the training data with random labels, {100 * how.zeroed:g} % of the pixels "
        "zeroed, then the true labels (Damian, Ma, Lee, arXiv:2106.06530, whose start is not published); no "
        "augmentation. Both algorithms take the gradient of the mini-batch where the paper writes that of all data, "
        "perturb in every step (ε₀ = ∞), and take two gradients a step where SGD takes one. The trace is that of "
        f"{scale.measured:,} training examples. Every walk begins at the one start, so that intervals are over batches "
        "and perturbations, not over starts."
    )
