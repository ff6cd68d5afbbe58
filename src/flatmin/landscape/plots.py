"""Pictures: the one file of the library that knows matplotlib, which is imported when a picture is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.errors import ArgumentTypeError, FlatminError
from flatmin.measures import RadiusSearch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE, MARK, FAINT = "#0064b4", "#a8431f", "#5c6773"
"""The colours of every picture: what was measured, what stands out, what stands back."""


class MissingPackageError(FlatminError, ImportError):
    """A package that only this part of flatmin needs is not installed."""


def plot_radius(search: RadiusSearch, ax: Axes | None = None) -> Axes:
    r"""Draw the rise of the loss against the radius, with the rise that is allowed and the proposal.

    Both axes are logarithmic, so that a power of the radius is a straight line: the rise under noise has slope 2 where
    the loss is nearly quadratic, :math:`\sigma^2 \operatorname{tr} H / 2`; that along the gradient has slope 1 where it
    is nearly linear, :math:`\rho \|g\|`. Bars reach one standard error up and down. Radii where the loss did not rise
    or overflowed have no place on these axes and are marked at the lower and the upper edge.

    Args:
        search: What :func:`~flatmin.measures.find_sigma` or :func:`~flatmin.measures.find_rho` returned.
        ax: Axes of matplotlib to draw on. Default: those of a new figure.

    Returns:
        The axes; ``ax.figure.savefig("sigma.png")`` keeps the picture.

    Raises:
        ArgumentTypeError: ``search`` is no search.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> import matplotlib, torch
        >>> from flatmin.measures import find_sigma
        >>> matplotlib.use("agg")
        >>> model, data = torch.nn.Linear(3, 1), [(torch.eye(3), torch.ones(3, 1))]
        >>> ax = plot_radius(find_sigma(model, torch.nn.functional.mse_loss, data))
        >>> ax.get_xscale(), ax.get_yscale()
        ('log', 'log')
    """
    if not isinstance(search, RadiusSearch):
        raise ArgumentTypeError(
            f"search is {search!r}, but what find_sigma or find_rho returned is needed: "
            "plot_radius(find_sigma(model, loss_fn, batches))."
        )
    if ax is None:
        ax = new_axes()
    name = {"sigma": "standard deviation of the noise, σ", "rho": "length of the ascent step, ρ"}[search.kind]
    ax.set(xscale="log", yscale="log", xlabel=name, ylabel=f"rise of the loss over {search.clean_loss:.4g}")
    _draw_curve(ax, search)
    _draw_proposal(ax, search)
    finish(ax)
    return ax


def finish(ax: Axes, *, columns: int = 2, legend: bool = True) -> None:
    """Draw grid and legend as every picture has them, the legend above, where it covers nothing."""
    ax.grid(visible=True, which="major", color=FAINT, alpha=0.2, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, frameon=False)


def new_axes(width: float = 6.0, height: float = 4.0) -> Axes:
    """Return the axes of a new figure, sizes in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415 (the library does without it until it draws)
    except ImportError as error:
        raise MissingPackageError(
            "plots need matplotlib, which is not installed here. Install it with: pip install 'flatmin[lab]'"
        ) from error
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _draw_curve(ax: Axes, search: RadiusSearch) -> None:
    """Draw the rises with their errors, and at the edges the radii whose rise has no logarithm."""
    radii, rises, infinite = search.grid.numpy(), search.rises, float("inf")
    is_seen = (rises > 0) & (rises < infinite)
    # Room around the allowed rise, the one thing that is always there.
    ax.update_datalim([(radii[0], search.tolerance / 3), (radii[-1], search.tolerance * 3)])
    if is_seen.any():
        ax.errorbar(
            radii,
            rises.where(is_seen, float("nan")).numpy(),  # NaN breaks the line
            yerr=search.stderrs.numpy() if search.kind == "sigma" else None,
            color=CURVE,
            marker="o",
            markersize=4,
            linewidth=1.4,
            capsize=2.5,
            elinewidth=1,
            label="mean rise ± standard error" if search.kind == "sigma" else "rise",
        )
    for mask, height, marker, meaning in ((rises <= 0, 0.0, "v", "no rise"), (rises == infinite, 1.0, "^", "overflow")):
        if mask.any():
            ax.plot(
                radii[mask.numpy()],
                [height] * int(mask.sum()),
                linestyle="none",
                marker=marker,
                color=FAINT,
                clip_on=False,
                transform=ax.get_xaxis_transform(),
                label=meaning,
            )


def _draw_proposal(ax: Axes, search: RadiusSearch) -> None:
    """Draw the rise that is allowed and, if there is one, the radius that it leads to."""
    ax.axhline(
        search.tolerance, color=MARK, linewidth=1.2, linestyle=(0, (5, 2)), label=f"allowed: {search.tolerance:.3g}"
    )
    if search.is_enclosed:
        symbol = {"sigma": "σ", "rho": "ρ"}[search.kind]
        ax.axvline(search.value, color=MARK, linewidth=1, linestyle=(0, (1, 1.5)))
        ax.plot(
            search.value,
            search.tolerance,
            linestyle="none",
            marker="D",
            markersize=6,
            color=MARK,
            zorder=5,
            label=f"proposal: {symbol} = {search.value:.3g}",
        )
