"""Pictures of curvature: a trace as it converges, the shares of the layers, the density of the spectrum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.layerwise import LayerwiseResult
from flatmin.curvature.results import TraceEstimate, plus_minus, student_quantile
from flatmin.curvature.spectrum import SpectralDensity
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.landscape.plots import CURVE, FAINT, MARK, finish, new_axes

if TYPE_CHECKING:
    from flatmin.landscape.plots import Axes

_LONG = 45  # characters of a layer's name


def plot_trace(estimate: TraceEstimate, ax: Axes | None = None, *, confidence: float = 0.95) -> Axes:
    r"""Draw a trace as it converges: the mean of the first n draws with its interval, against n.

    The band is Student's: :math:`\bar x_n \pm t_{n-1} s_n / \sqrt n`, from the third draw on. A valid band narrows as
    1/√n and mostly holds the line of the final value.

    Args:
        estimate: A trace with its samples.
        ax: Axes of matplotlib to draw on. Default: those of a new figure.
        confidence: Of the band, pointwise.

    Returns:
        The axes; ``ax.figure.savefig("trace.png")`` keeps the picture.

    Raises:
        ArgumentError: It has fewer than four samples, as an exact trace does.
        ArgumentTypeError: ``estimate`` is no trace.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> from flatmin.curvature import trace
        >>> plot_trace(trace(torch.ones(9, 9), num_matvecs=20, method="hutchinson")).get_xlabel()
        'draws'
    """
    if not isinstance(estimate, TraceEstimate):
        raise ArgumentTypeError(f"estimate is {estimate!r}, but a trace is needed: plot_trace(trace(H)).")
    if estimate.samples is None or estimate.samples.numel() < 4:
        raise ArgumentError(
            f"the trace {plus_minus(estimate.value, estimate.stderr)} has no draws to show, being exact or live. Print "
            "it instead."
        )
    estimate.interval(confidence)  # checks it
    ax = new_axes() if ax is None else ax
    draws = estimate.samples.to(torch.float64)
    counts = torch.arange(1, len(draws) + 1, dtype=torch.float64)
    means = draws.cumsum(0) / counts
    squares = (draws - draws.mean()).square().cumsum(0) - counts * (means - draws.mean()).square()
    errors = (squares.clamp(min=0.0) / (counts - 1) / counts).sqrt()[2:]
    quantiles = torch.tensor([student_quantile((1 + confidence) / 2, n) for n in range(2, len(draws))])
    shift = estimate.value - float(means[-1])  # of a part that is known exactly and not among the draws
    x, middle, half = counts[2:].numpy(), (means[2:] + shift).numpy(), (errors * quantiles).numpy()
    ax.fill_between(x, middle - half, middle + half, color=CURVE, alpha=0.18, linewidth=0)
    ax.plot(x, middle, color=CURVE, linewidth=1.6, label=f"mean so far, {100 * confidence:g} % band")
    ax.axhline(estimate.value, color=MARK, linewidth=1, linestyle=(0, (5, 2)), label=_final(estimate))
    first = len(half) // 10  # the first few bands dwarf all others
    low, high = float((middle - half)[first:].min()), float((middle + half)[first:].max())
    ax.set(xlabel="draws", ylabel="trace", xlim=(x[0], x[-1]))
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low)) if high > low else None
    finish(ax)
    return ax


def plot_density(density: SpectralDensity, ax: Axes | None = None, *, width: float | None = None) -> Axes:
    r"""Draw how many eigenvalues there are, on a logarithmic axis, with the confidence band.

    The height is :math:`\sum_i \mathcal N(x; \lambda_i, \sigma^2)`, eigenvalues per unit: the area under a piece of it
    is their number. Eigenvalues that are known one by one are marked above. The axis ends below at a tenth of what a
    single eigenvalue makes at its place.

    Args:
        density: What ``spectral_density`` returned.
        ax: Axes of matplotlib to draw on. Default: those of a new figure.
        width: Standard deviation σ of the smoothing. Default: the density's own.

    Returns:
        The axes.

    Raises:
        ArgumentError: ``width`` is 0 or less.
        ArgumentTypeError: ``density`` is something else.
        MissingPackageError: matplotlib is not installed.
    """
    if not isinstance(density, SpectralDensity):
        raise ArgumentTypeError(f"density is {density!r}, but what spectral_density(H) returned is needed.")
    d, grid = density.dimension, density.grid(width)
    smoothing = density.width if width is None else width
    ends = [end + sign * smoothing * torch.linspace(0, 4, 33) for end, sign in ((grid.min(), -1), (grid.max(), 1))]
    band = density.density(torch.cat([*ends, grid]).unique(), width)
    ax = new_axes() if ax is None else ax
    single = 1 / (math.sqrt(2 * math.pi) * band.width)  # the peak that one eigenvalue makes
    floor = single / 10
    x, value, lower, upper = (t.numpy() for t in (band.x, *(d * t for t in (band.value, band.lower, band.upper))))
    seen = value.copy()
    seen[value < floor] = math.nan  # a gap, and no line along the axis
    ax.plot(x, seen, color=CURVE, linewidth=1.4, label=f"density, smoothed by {band.width:.2g}")
    if len(density.outliers):
        known = density.outliers.tolist()
        marks = ax.get_xaxis_transform()  # x in units of the eigenvalues, y of the axes
        count = f"{len(known)} known eigenvalues" if len(known) > 1 else "a known eigenvalue"
        ax.plot(known, [0.985] * len(known), "v", color=MARK, markersize=4.5, transform=marks, label=count)
    ax.fill_between(x, lower.clip(floor), upper.clip(floor), color=CURVE, alpha=0.22, linewidth=0, label="95 % band")
    ax.set(yscale="log", xlabel="eigenvalue", ylabel="eigenvalues per unit")
    ax.set_ylim(floor, 4 * max(float(upper.max()), single))
    finish(ax)
    return ax


def plot_layers(layers: LayerwiseResult, ax: Axes | None = None, *, most: int = 30) -> Axes:
    """Draw the share that each layer has in the trace, with one standard error, in the order of the network.

    Args:
        layers: What ``layerwise(trace, H)`` returned.
        ax: Axes of matplotlib to draw on. Default: those of a new figure, as high as the layers need.
        most: Layers that are drawn: where there are more, those with the largest shares, the rest being summed up.

    Returns:
        The axes.

    Raises:
        ArgumentError: The layers have no shares.
        ArgumentTypeError: ``layers`` is something else.
        MissingPackageError: matplotlib is not installed.
    """
    if not isinstance(layers, LayerwiseResult):
        raise ArgumentTypeError(f"layers is {layers!r}, but what layerwise(trace, H) returned is needed.")
    if not all(layer.share == layer.share for layer in layers):
        raise ArgumentError(
            f"layers of {layers.quantity!r} do not add up to a whole, so there are no shares to draw. Traces do: "
            "layerwise(trace, H)."
        )
    ranked = sorted(layers, key=lambda layer: abs(layer.share), reverse=True)
    shown = {layer.name for layer in ranked[:most]}
    bars = [layer for layer in layers if layer.name in shown]
    rest = [100 * layer.share for layer in ranked[most:]]
    ax = new_axes(height=1.2 + 0.2 * len(bars)) if ax is None else ax
    y = list(range(len(bars)))
    shares = [100 * layer.share for layer in bars]
    errors = [100 * layer.share_stderr if layer.share_stderr > 0 else 0.0 for layer in bars]
    ax.barh(y, shares, height=0.72, color=CURVE)
    if any(errors):
        ax.errorbar(shares, y, xerr=errors, linestyle="none", color=MARK, elinewidth=1.1, capsize=2)
    ax.set_yticks(y, [_short(layer.name) for layer in bars])
    others = f"\n{len(rest)} others have {sum(rest):.3g} % together" if rest else ""
    ax.set(xlabel=f"share of the trace (%){others}", ylim=(len(bars) - 0.4, -0.6))
    ax.grid(visible=True, axis="x", color=FAINT, alpha=0.2, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def _short(name: str) -> str:
    """Return a name with its middle left out if it would leave no room for the bars."""
    return name if len(name) <= _LONG else f"{name[: _LONG // 3]}…{name[-_LONG * 2 // 3 + 1 :]}"


def _final(estimate: TraceEstimate) -> str:
    return f"in the end: {plus_minus(estimate.value, estimate.stderr)}"
