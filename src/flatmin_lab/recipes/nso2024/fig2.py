"""Figure 2 of the NSO paper: the perturbation gap against half σ² times the Hessian's trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flatmin_lab.recipes.gap import run_gap
from flatmin_lab.recipes.outcome import Outcome, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from flatmin_lab.recipes.gap_results import GapComparison
    from flatmin_lab.recipes.outcome import Watch

_NETWORKS = ("mlp-relu", "mlp-gelu", "gcn-relu", "gcn-gelu")
_TOY = 2  # of them, which need no data root
_TOLD = {True: "yes", False: "no", None: "undecided"}


def fig2(size: str, seed: int, watch: Watch) -> Outcome:
    """Train perceptrons and graph networks, with kinks as the paper has them and without, and compare.

    Args:
        size: ``"toy"``: perceptrons on scikit-learn's digits; ``"small"`` and ``"paper"`` read MNIST and the ego
            networks from the data root.
        seed: Of everything random.
        watch: Told of the progress.

    Raises:
        ArgumentError: There is no such size.
        DataError: The data are not there.
    """
    found = [_of(name, size, seed, watch) for name in (_NETWORKS[:_TOY] if size == "toy" else _NETWORKS)]

    def draw() -> Figure:
        from flatmin_lab.report.gaps import gap_figure

        return gap_figure(found)

    return Outcome(
        tables=(_points(found), _networks(found)),
        figures={"gap": draw},
        series={f"gap-{c.name}": _series(c) for c in found},
        text=_text(found),
    )


def _of(name: str, size: str, seed: int, watch: Watch) -> GapComparison:
    return run_gap(name, size, seed=seed, watch=lambda what, done, total: watch(f"{name}: {what}", done, total))


def _points(found: Sequence[GapComparison]) -> Table:
    return Table(
        "gaps",
        ("network", "sigma", "gap", "sigma^2/2 tr H", "difference, % of the gap", "its standard error, %"),
        tuple(
            (c.name, p.sigma, p.gap, p.approximation, 100 * p.difference, 100 * p.difference_stderr)
            for c in found
            for p in c.points
        ),
        "The perturbation gap on the training set, and what the trace of the same weights' block makes of it.",
    )


def _networks(found: Sequence[GapComparison]) -> Table:
    return Table(
        "networks",
        ("network", "kinks", "trace", "2 gap / sigma^2 at the smallest sigma", "relative RSS, %", "by chance alone, %"),
        tuple((c.name, _TOLD[c.kinks], c.trace, c.smoothed_trace, 100 * c.rss, 100 * c.chance_rss) for c in found),
        "The networks as a whole: relative residual sums of squares, and what Monte-Carlo errors alone make of them.",
    )


def _series(found: GapComparison) -> dict[str, np.ndarray]:
    fields = ("sigma", "gap", "gap_stderr", "approximation", "approximation_stderr")
    return {field: np.array([getattr(p, field) for p in found.points]) for field in fields}


def _text(found: Sequence[GapComparison]) -> str:
    what = "; ".join(f"`{c.name}`: {c.network} on {c.data}, {c.num_examples:,} examples" for c in found)
    verdicts = "\n".join(f"- `{c.name}`: {c.verdict}" for c in found)
    return (
        "The paper says that the gap F(W) − f(W) and σ²/2 tr ∇²f(W) agree within 3 %, by a measure that it does not "
        "name, for a ReLU perceptron on MNIST, BERT on MRPC and a graph network on COLLAB.\n\n"
        f"Here: {what}. Found:\n\n{verdicts}\n\n"
        "Differences: networks with GELU stand beside those with ReLU, since the paper's equation (4) assumes two "
        "derivatives. The trace is of all examples at once, exact or to 1 %. The ego networks are of COLLAB's kind, "
        "but not COLLAB. The encoder needs pretrained weights and is run from Python, by "
        '`run_gap("bert", weights=FOLDER)`.'
    )
