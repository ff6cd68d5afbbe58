"""The perturbation gap beside half σ² times the trace: a table for the console, and the figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich import box
from rich.table import Table

from flatmin.curvature.results import plus_minus
from flatmin_lab.report.style import MUTED, method_styles
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from flatmin_lab.recipes.gap_results import GapComparison
    from flatmin_lab.report.style import MethodStyle

_KINKS = {True: "kinks", False: "no kinks", None: "undecided"}


def gap_table(found: GapComparison) -> Table:
    """Return a comparison as a table, with what follows from it below."""
    table = Table(
        title=f"{found.network} on {found.data} ({found.num_examples:,} examples), seed {found.seed}",
        box=box.SIMPLE_HEAD,
        caption=" ".join(summary(found)),
        caption_justify="left",
        title_justify="left",
    )
    for name in ("σ", "gap", "σ²/2 tr H", "(gap − approximation) / gap, %", "in standard errors"):
        table.add_column(name, justify="right")
    for p in found.points:
        table.add_row(
            f"{p.sigma:g}",
            plus_minus(p.gap, p.gap_stderr),
            plus_minus(p.approximation, p.approximation_stderr),
            plus_minus(100 * p.difference, 100 * p.difference_stderr),
            f"{p.score:+.1f}",
        )
    return table


def summary(found: GapComparison) -> list[str]:
    """Return what the table cannot hold, as sentences."""
    trace = f"{found.trace:.5g} exactly" if found.trace_stderr == 0 else plus_minus(found.trace, found.trace_stderr)
    smoothed = plus_minus(found.smoothed_trace, found.smoothed_stderr)
    return [
        f"Loss {found.loss:.3g}, accuracy {100 * found.accuracy:.1f} %, {found.num_perturbed:,} weights perturbed.",
        f"Trace of their Hessian {trace} ({found.trace_method}), smoothed trace at the smallest σ {smoothed}.",
        f"Relative residual sum of squares {100 * found.rss:.2g} %; chance alone makes {100 * found.chance_rss:.2g} %.",
        f"Judged by forward passes alone: {_KINKS[found.kinks]} (exponent {found.exponent:.2g}).",
        found.verdict,
    ]


def gap_figure(comparisons: Sequence[GapComparison]) -> Figure:
    """Draw gaps over σ with what the traces make of them, and beside it how much they differ.

    Args:
        comparisons: Up to four, which are told apart.

    Returns:
        The figure. On the left, both axes logarithmic, gaps are marks with one standard error and σ²/2 tr H lines; on
        the right is the difference in per cent of the gap, with one standard error.
    """
    styles = method_styles(tuple(c.name for c in comparisons))
    with mpl.rc_context(RC):
        figure = Figure(figsize=(8.6, 3.6), layout="constrained", facecolor="none")
        left, right = figure.subplots(1, 2)
        for comparison in comparisons:
            _draw(left, right, comparison, styles[comparison.name])
        right.axhline(0, color=MUTED.light, linewidth=0.9)
        left.set(xscale="log", yscale="log", xlabel="σ", ylabel="loss")
        left.set_title("marks: gap; lines: σ²/2 tr H")
        right.set(xscale="log", xlabel="σ", ylabel="% of the gap")
        right.set_title("gap − σ²/2 tr H")
        for axes in (left, right):
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(visible=True, which="major")
        left.legend()
    return figure


def _draw(left: Axes, right: Axes, found: GapComparison, style: MethodStyle) -> None:
    sigmas = [p.sigma for p in found.points]
    colour, look = style.colour.light, {"linestyle": "none", "markersize": 4.5, "elinewidth": 1.1, "capsize": 2}
    left.plot(sigmas, [p.approximation for p in found.points], color=colour, dashes=style.dashes, linewidth=1.3)
    gaps, errors = [p.gap for p in found.points], [p.gap_stderr for p in found.points]
    left.errorbar(sigmas, gaps, yerr=errors, color=colour, marker=style.marker, label=found.name, **look)
    differences = [100 * p.difference for p in found.points]
    spread = [100 * p.difference_stderr for p in found.points]
    right.plot(sigmas, differences, color=colour, dashes=style.dashes, linewidth=1)
    right.errorbar(sigmas, differences, yerr=spread, color=colour, marker=style.marker, **look)
