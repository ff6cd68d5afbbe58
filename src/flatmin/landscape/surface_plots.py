"""Pictures of the loss along lines and over planes, of several solutions on one scale, and of paths across a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from flatmin.checks import whole
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.landscape.plots import CURVE, FAINT, MARK, finish, new_axes
from flatmin.landscape.surface import Surface
from flatmin.landscape.trajectory import TrajectoryPlane

if TYPE_CHECKING:
    from flatmin.landscape.plots import Axes

_LOOKS = (("-", CURVE), ((0, (5, 2)), MARK), ((0, (1, 1.5)), "#00825f"), ((0, (7, 2, 1.5, 2)), "#7a4fc0"))
_MARKERS = ("o", "^", "s", "D")
_LOG_RANGE = 20.0


def common_levels(*surfaces: Surface, count: int = 11) -> tuple[float, ...]:
    """Return levels for contours that hold every finite loss of all surfaces, so that they are drawn on one scale.

    Args:
        surfaces: Lines or planes.
        count: How many levels.

    Returns:
        Ascending levels, evenly spaced in the logarithm where the largest loss is more than twenty times the smallest,
        and evenly spaced otherwise.

    Raises:
        ArgumentError: No loss is finite, or ``count`` is below 2.

    Example:
        >>> ends = torch.tensor([1.0, 5.0]), torch.tensor([float("inf"), 0.0])
        >>> common_levels(*(Surface(loss=loss, axes=(), directions=(), lengths=()) for loss in ends), count=3)
        (0.0, 2.5, 5.0)
    """
    whole("count", count, minimum=2, hint="It is the number of levels.")
    losses = torch.cat([surface.loss.flatten() for surface in surfaces]) if surfaces else torch.empty(0)
    losses = losses[losses.isfinite()].to(torch.float64)
    if losses.numel() == 0:
        raise ArgumentError(
            "no loss is finite, so that there is nothing to draw levels of. Take smaller coordinates around weights "
            "whose own loss is finite."
        )
    low, high = float(losses.min()), float(losses.max())
    if not high > low:  # a plane: any small range around it
        low, high = low - 0.5, high + 0.5
    if is_logarithmic((low, high)):
        inner = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)
    else:
        inner = torch.linspace(low, high, count, dtype=torch.float64)
    return (low, *inner[1:-1].tolist(), high)


def plot_line(
    lines: Surface | Sequence[Surface], ax: Axes | None = None, *, labels: Sequence[str] | None = None
) -> Axes:
    """Draw the loss along one line, or along one line for each of several solutions, on one scale.

    Points whose loss is not finite are gaps. The axis of the loss is logarithmic where the largest is more than twenty
    times the smallest.

    Args:
        lines: What ``surface`` returned for one direction. Several are comparable along directions of one kind: all of
            length 1, or all of the filters' lengths.
        ax: Axes of matplotlib to draw on. Default: those of a new figure.
        labels: One for each line.

    Returns:
        The axes; ``ax.figure.savefig("line.png")`` keeps the picture.

    Raises:
        ArgumentError: One is no line, no loss is finite, or there are not as many labels as lines.
        ArgumentTypeError: What is given is no surface.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> x = torch.linspace(-1, 1, 5)
        >>> plot_line(Surface(loss=x**2, axes=(x,), directions=({},), lengths=(1.0,))).get_xlabel()
        'distance along the direction'
    """
    lines = list(lines) if isinstance(lines, Sequence) else [lines]
    for line in lines:
        _check(line, 1, "plot_line")
    if labels is not None and len(labels) != len(lines):
        raise ArgumentError(f"there are {len(labels)} labels, but {len(lines)} lines. Give one for each.")
    on_logarithms = is_logarithmic(common_levels(*lines))
    ax = new_axes() if ax is None else ax
    for number, line in enumerate(lines):
        style, colour = _LOOKS[number % len(_LOOKS)]
        loss = line.loss.where(line.loss.isfinite(), float("nan")).numpy()
        label = None if labels is None else labels[number]
        ax.plot(line.axes[0].numpy(), loss, color=colour, linestyle=style, linewidth=1.6, label=label)
    ax.axvline(0.0, color=FAINT, linewidth=0.8, alpha=0.6, zorder=0)
    ax.set(xlabel=_axis("direction", [line.lengths[0] for line in lines]), ylabel="loss")
    if on_logarithms:
        ax.set_yscale("log")
    finish(ax, legend=labels is not None)
    return ax


def plot_plane(plane: Surface, ax: Axes | None = None, *, levels: Sequence[float] | None = None) -> Axes:
    """Draw the loss over a plane as filled contours, a cross at the weights.

    Points whose loss is not finite stay blank. A step is as long on the paper along one direction as along the other.

    Args:
        plane: What ``surface`` returned for two directions.
        ax: Axes of matplotlib to draw on. Default: those of a new figure.
        levels: Ascending levels of the contours. Default: those of this plane; with :func:`common_levels` of several,
            all have one scale.

    Returns:
        The axes; ``ax.figure.savefig("plane.png")`` keeps the picture.

    Raises:
        ArgumentError: It is no plane, has fewer than two points along a direction, or no loss is finite.
        ArgumentTypeError: What is given is no surface.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> x = torch.linspace(-1, 1, 5)
        >>> bowl = Surface(loss=x[:, None] ** 2 + x**2, axes=(x, x), directions=({}, {}), lengths=(1.0, 1.0))
        >>> plot_plane(bowl).get_ylabel()
        'distance along the second direction'
    """
    _check(plane, 2, "plot_plane")
    if min(plane.loss.shape) < 2:
        raise ArgumentError(f"the plane has {tuple(plane.loss.shape)} points, but contours need two along each side.")
    levels = common_levels(plane) if levels is None else tuple(levels)
    ax = new_axes(5.6, 4.4) if ax is None else ax
    x, y = (axis.numpy() for axis in plane.axes)
    # loss[i, j] lies at (x[i], y[j]); contour wants rows along the vertical axis
    loss = plane.loss.where(plane.loss.isfinite(), float("nan")).T.numpy()
    look: dict[str, Any] = {"levels": levels, "norm": "log" if is_logarithmic(levels) else "linear"}
    beyond = _beyond(plane, levels)
    filled = ax.contourf(x, y, loss, cmap="viridis", extend=beyond, vmin=levels[0], vmax=levels[-1], **look)
    ax.contour(x, y, loss, levels=levels, colors="white", linewidths=0.5, alpha=0.6)
    ax.plot(0.0, 0.0, "+", color="white", markersize=10, markeredgewidth=1.8)
    names = ("first direction", "second direction")
    ax.set(xlabel=_axis(names[0], plane.lengths[:1]), ylabel=_axis(names[1], plane.lengths[1:]))
    ax.locator_params(nbins=5)
    ax.set_aspect("equal" if _same_length(*plane.lengths) else "auto")
    bar = ax.figure.colorbar(filled, ax=ax, ticks=levels[::2], label="loss", shrink=0.9)
    bar.ax.set_yticklabels([f"{level:.3g}" for level in levels[::2]])
    bar.ax.minorticks_off()
    return ax


def plot_trajectory(plane: TrajectoryPlane, ax: Axes | None = None, *, labels: Sequence[str] | None = None) -> Axes:
    """Draw the paths of training over their plane, with how much of them the plane holds.

    A snapshot off the plane is seen as from above, and its colour does not show its loss: the larger its mark, the
    farther it is off. Draw the loss first: ``plot_trajectory(plane, plot_plane(surface(...)))``.

    Args:
        plane: What ``trajectory_plane`` returned.
        ax: Axes of matplotlib to draw on. Default: those of a new figure.
        labels: One for each path.

    Returns:
        The axes.

    Raises:
        ArgumentError: There are not as many labels as paths.
        ArgumentTypeError: What is given is no such plane.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> from flatmin.landscape import Trajectory, trajectory_plane
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> trajectory = Trajectory(model)
        >>> for place in ([3.0, 0.0], [3.0, 1.0], [0.0, 0.0]):
        ...     _ = model.weight.data.copy_(torch.tensor([place]))
        ...     trajectory.record()
        >>> plot_trajectory(trajectory_plane(model, trajectory)).get_aspect()
        1.0
    """
    if not isinstance(plane, TrajectoryPlane):
        raise ArgumentTypeError(f"plane is a {type(plane).__name__}, but what trajectory_plane returned is needed.")
    if labels is not None and len(labels) != len(plane.paths):
        raise ArgumentError(f"there are {len(labels)} labels, but {len(plane.paths)} paths. Give one for each.")
    ax = new_axes(5.6, 4.4) if ax is None else ax
    largest = max(float(path.distances.max()) for path in plane.paths)
    for number, path in enumerate(plane.paths):
        colour, marker = ("#ffffff", "#ffb36b", "#9be7ff", "#ff9ad5")[number % 4], _MARKERS[number % 4]
        label = f"off the plane by up to {float(path.distances.max()):.2g}"
        label = label if labels is None else f"{labels[number]}, {label}"
        x, y = path.points.T.numpy()
        ax.plot(x, y, color="#1b2430", linewidth=2.2, alpha=0.55, zorder=3)
        ax.plot(x, y, color=colour, linewidth=1.0, zorder=4)
        sizes = 12 + 60 * path.distances.numpy() / largest if largest > 0 else 12
        ax.scatter(x, y, s=sizes, c=colour, marker=marker, edgecolors="#1b2430", linewidths=0.7, zorder=5, label=label)
    first, second = (100 * plane.explained).tolist()
    ax.set(
        xlabel=f"first principal direction, distance ({first:.1f} %)",
        ylabel=f"second, distance ({second:.1f} %)",
        aspect="equal",
    )
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)
    return ax


def _check(surface: object, number: int, name: str) -> None:
    if not isinstance(surface, Surface):
        raise ArgumentTypeError(
            f"what is to be drawn is a {type(surface).__name__}, but what surface returned is needed: "
            f"{name}(surface(model, loss_fn, batches, coordinates=..., directions=...))."
        )
    if surface.loss.dim() != number:
        other = "plot_plane" if number == 1 else "plot_line"
        raise ArgumentError(
            f"{name} draws surfaces with {number} direction(s), and this one has {surface.loss.dim()}. Take {other}."
        )


def is_logarithmic(levels: Sequence[float]) -> bool:
    """Tell whether levels span a range for which the logarithm of the loss is drawn."""
    return levels[0] > 0 and levels[-1] / levels[0] > _LOG_RANGE


def _beyond(plane: Surface, levels: Sequence[float]) -> str:
    """Say on which side losses lie beyond the levels, in matplotlib's words."""
    finite = plane.loss[plane.loss.isfinite()]
    is_below, is_above = bool((finite < levels[0]).any()), bool((finite > levels[-1]).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max"}.get((is_below, is_above), "both")


def _axis(name: str, lengths: Sequence[float]) -> str:
    """Say in what a coordinate along a direction is measured."""
    if all(_same_length(length, 1.0) for length in lengths):
        return f"distance along the {name}"
    told = " and ".join(f"{length:.3g}" for length in lengths)
    return f"multiples of the {name} (length {told})" if len(lengths) < 4 else f"multiples of the {name}"


def _same_length(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4)
