"""Loss surfaces around solutions, side by side on one colour scale (Li et al. 2018, arXiv:1712.09913)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.ticker import FuncFormatter

from flatmin.landscape import Surface as Levelled
from flatmin.landscape import common_levels
from flatmin.landscape.surface_plots import is_logarithmic
from flatmin_lab.report.style import INK
from flatmin_lab.report.svg import RC, panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from flatmin_lab.spec import Surface

_NUM_LEVELS = 11
_NUM_COLOURS = 48


@dataclass(frozen=True)
class ColourScale:
    """One scale for several surfaces: contour levels, logarithmic where the range asks for it."""

    levels: tuple[float, ...]

    @property
    def norm(self) -> Normalize:
        """Matplotlib's map from loss to colour."""
        low, *_, high = self.levels
        return LogNorm(low, high) if is_logarithmic(self.levels) else Normalize(low, high)


def common_scale(surfaces: Sequence[Surface]) -> ColourScale | None:
    """Levels that hold every finite loss of all surfaces.

    Args:
        surfaces: Surfaces that will be compared by eye.

    Returns:
        The scale, log-spaced where the largest loss is more than twenty times the smallest; None where no loss is
        finite.
    """
    drawn = [
        Levelled(loss=torch.tensor(s.loss, dtype=torch.float64), axes=(), directions=(), lengths=()) for s in surfaces
    ]
    if not any(bool(surface.loss.isfinite().any()) for surface in drawn):
        return None
    return ColourScale(common_levels(*drawn, count=_NUM_LEVELS))


def surface_figure(surface: Surface, scale: ColourScale, title: str) -> Figure:
    """Draw one surface: filled contours as an embedded PNG, axes in filter norms, the solution as a cross.

    Args:
        surface: Loss on a plane through a solution.
        scale: From `common_scale` over all surfaces shown together.
        title: Whose solution it is.

    Returns:
        The figure. Points without a finite loss stay blank.
    """
    x = np.asarray(surface.coordinates)
    loss = np.ma.masked_invalid(np.asarray(surface.loss, dtype=np.float64))
    with mpl.rc_context(RC):
        figure, axes = panel(4.7, 3.9)
        # loss[i][j] lies at (x[i], x[j]); contour wants rows along the vertical axis
        filled = axes.contourf(x, x, loss.T, levels=scale.levels, norm=scale.norm, cmap="viridis", extend="both")
        filled.set_rasterized(True)
        axes.contour(x, x, loss.T, levels=scale.levels, colors="white", linewidths=0.5, alpha=0.7)
        axes.plot(0, 0, "+", color="white", markersize=11, markeredgewidth=1.8)
        axes.set_title(title, color=INK.light)
        axes.set_xlabel("First direction (filter norms)")
        axes.set_ylabel("Second direction (filter norms)")
        axes.set_aspect("equal")
        bar = figure.colorbar(filled, ax=axes, ticks=scale.levels[::2], shrink=0.9)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        bar.ax.minorticks_off()
        bar.set_label("Training loss")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        if bar.solids is not None:
            bar.solids.set_rasterized(True)
    return figure


def solid(surfaces: Sequence[Surface], titles: Sequence[str], scale: ColourScale) -> str:
    """Return surfaces as JSON for the page's script, which draws them as solids that can be turned.

    Args:
        surfaces: Surfaces that are compared by eye.
        titles: One for each.
        scale: From `common_scale` over all of them.

    Returns:
        JSON: colours from low to high, and for each surface its coordinates and its heights between 0 and 1 on the
        common scale; null where the loss is not finite.
    """
    norm, colours = scale.norm, mpl.colormaps["viridis"](np.linspace(0, 1, _NUM_COLOURS))
    drawn = []
    for surface, title in zip(surfaces, titles, strict=True):
        loss = np.asarray(surface.loss, dtype=np.float64)
        height = np.full(loss.shape, np.nan)
        height[np.isfinite(loss)] = np.clip(norm(loss[np.isfinite(loss)]), 0, 1)
        rows = [[None if np.isnan(h) else round(h, 4) for h in row] for row in height.tolist()]
        drawn.append({"title": title, "x": [round(x, 4) for x in surface.coordinates], "height": rows})
    return json.dumps(
        {
            "colours": [to_hex(colour) for colour in colours],
            "low": f"{scale.levels[0]:.2g}",
            "high": f"{scale.levels[-1]:.2g}",
            "surfaces": drawn,
        },
        allow_nan=False,
    )
