"""Matplotlib figures as inline SVG that follows the page: its fonts, its theme, no identifier used twice."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from flatmin_lab.report.style import GRID, INK, MUTED, all_colours

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED.light,
    "axes.edgecolor": MUTED.light,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": INK.light,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": GRID.light,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 2.6,
    "figure.constrained_layout.use": True,
    "path.simplify": False,
}


_LETTERS_PER_INCH, _LEGEND_LINE = 13.5, 0.19  # of the legend's type


def panel(width: float = 4.7, height: float = 3.3) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes. Sizes in inches; no pyplot, hence nothing global."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    return figure, axes


def legend_above(figure: Figure, labels: Iterable[str]) -> None:
    """Explain the marks above the panel, in as many columns as the labels leave room for; the figure grows by them."""
    labels = list(labels)
    longest = max(map(len, labels), default=0)
    columns = max(1, min(4, int(_LETTERS_PER_INCH * figure.get_figwidth()) // (longest + 6)))
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * (math.ceil(len(labels) / columns) - 1))
    figure.legend(loc="outside upper left", ncols=columns, borderaxespad=0.2, columnspacing=1.2, handletextpad=0.5)


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Write a figure for the page.

    Args:
        figure: What to draw; PNG parts, such as rasterised surfaces, are embedded.
        name: Prefix of every identifier inside; unique on the page.
        alt: What the figure shows, for those who cannot see it.

    Returns:
        An ``<svg>`` element without fixed size, without external references, equal for equal figures.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**RC, "svg.hashsalt": name}):  # a fixed salt: equal figures give equal text
        figure.savefig(buffer, format="svg", dpi=170, transparent=True)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour in all_colours():
        svg = svg.replace(colour.light, f"var(--{colour.name})")
    box = re.search(r'viewBox="([^"]*)"', svg)
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(alt)}"'
    body = re.sub(r"^<svg [^>]*>", f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">', svg)
    return Markup(body.strip())  # noqa: S704 - matplotlib escapes the text it writes, `alt` is escaped above
