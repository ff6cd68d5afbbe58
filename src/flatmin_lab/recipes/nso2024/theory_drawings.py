"""The bounds and what lies between them, on logarithmic axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from flatmin_lab.report.style import MUTED, MethodStyle, method_styles
from flatmin_lab.report.svg import RC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from flatmin.problems import Setting
    from flatmin_lab.recipes.nso2024.bounds import Simulated
    from flatmin_lab.recipes.nso2024.theory import Sweep

_NSO, _WP, _CHAIN, _LAST, _HEAVY = method_styles(("nso", "wpsgd", "chain", "last", "heavy")).values()
_TITLES = {"T": "steps T", "k": "perturbations k", "σ_g": r"noise of the gradients $\sigma_g$"}


def draw_bounds(
    sweeps: Sequence[Sweep],
    heavy: Sequence[Simulated],
    sigmas: Sequence[float],
    by_sigma: Sequence[tuple[Setting, Simulated, Simulated]],
) -> Figure:
    """Draw a panel for each constant: the bounds as grey lines, simulations as marks, closed forms as lines."""
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.4, 6.6), layout="constrained")
        panels = figure.subplots(2, 2).flatten()
        for sweep, axes in zip(sweeps, panels[:3], strict=True):
            _draw_sweep(axes, sweep)
        steps = [p.x for p in sweeps[0].points]
        _marks(panels[0], steps, heavy, "last", _HEAVY, "momentum 0.9, step T")
        _draw_sigma(panels[3], sigmas, by_sigma)
        for axes in panels:
            axes.set(xscale="log", yscale="log", ylabel="square gradient norm")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.grid(visible=True, which="major")
        named = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def _draw_sweep(axes: Axes, sweep: Sweep) -> None:
    x, points = [p.x for p in sweep.points], sweep.points
    grey = {"color": MUTED.light, "linewidth": 1.1}
    axes.plot(x, [p.setting.upper_bound for p in points], label="upper bound (12)", linestyle="--", **grey)
    axes.plot(x, [p.setting.lower_bound for p in points], label="lower bound (14)", **grey)
    runs = [p.quadratic for p in points]
    axes.plot(x, [r.expected_mean for r in runs], color=_NSO.colour.light, linewidth=1)
    axes.plot(x, [r.expected_last for r in runs], color=_LAST.colour.light, linewidth=1)
    _marks(axes, x, runs, "mean", _NSO, "NSO on the quadratic, mean")
    _marks(axes, x, runs, "last", _LAST, "NSO on the quadratic, step T")
    least = [p.chain.least for p in points]
    axes.plot(
        x, least, color=_CHAIN.colour.light, marker=_CHAIN.marker, linewidth=1, markersize=4.5, label="chain, least"
    )
    axes.set_xlabel(_TITLES[sweep.name])


def _draw_sigma(axes: Axes, sigmas: Sequence[float], found: Sequence[tuple[Setting, Simulated, Simulated]]) -> None:
    axes.plot(
        sigmas,
        [s.upper_bound for s, *_ in found],
        label="upper bound (12)",
        color=MUTED.light,
        linestyle="--",
        linewidth=1.1,
    )
    for style, runs, label in (
        (_NSO, [nso for _, nso, _ in found], "NSO on the quadratic, mean"),
        (_WP, [wp for _, _, wp in found], "WP-GD on the quadratic, mean"),
    ):
        axes.plot(sigmas, [r.expected_mean for r in runs], color=style.colour.light, linewidth=1)
        _marks(axes, sigmas, runs, "mean", style, label)
    axes.set_xlabel("perturbation σ")


def _marks(
    axes: Axes, x: Sequence[float], runs: Sequence[Simulated], what: str, style: MethodStyle, label: str
) -> None:
    values, errors = [getattr(r, what) for r in runs], [getattr(r, f"{what}_stderr") for r in runs]
    look = {"linestyle": "none", "markersize": 4.5, "elinewidth": 1.1, "capsize": 2}
    axes.errorbar(x, values, yerr=errors, color=style.colour.light, marker=style.marker, label=label, **look)
