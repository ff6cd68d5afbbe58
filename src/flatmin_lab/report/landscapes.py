"""Lines and planes through solutions: a table for the console, figures as files, and a page on which planes turn."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import matplotlib as mpl
import torch
from rich import box
from rich.table import Table

from flatmin.landscape import common_levels, plot_line, plot_plane
from flatmin_lab.data.examples import DATA
from flatmin_lab.landscapes.record import RECORD
from flatmin_lab.report.drawings import Drawing, write_page
from flatmin_lab.report.html import render_page
from flatmin_lab.report.measured import precise
from flatmin_lab.report.style import INK, method_styles
from flatmin_lab.report.surfaces import common_scale, solid
from flatmin_lab.report.svg import RC, inline_svg, panel
from flatmin_lab.report.text import examples_text, number
from flatmin_lab.spec import Surface

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.axes import Axes

    from flatmin_lab.landscapes.record import Landscape, Mark, Slice

_WHAT = {
    "random": "random directions",
    "eigenvectors": "eigenvectors of the Hessian, those of largest magnitude",
    "between": "the way between solutions",
}
_UNITS = {
    "filters": "A step of 1 moves every filter by its own length, so that networks whose weights differ in size can be "
    "compared.",
    "distance": "A step of 1 is a distance of 1 in weight space, for every solution.",
    None: "A line goes from one solution at 0 to the other at 1; in a plane a step is a distance in weight space.",
}


def publish_landscape(found: Landscape, folder: Path) -> dict[str, Path]:
    """Write the page and every figure as SVG and PNG.

    Args:
        found: What was found.
        folder: Where.

    Returns:
        The files by what they are: ``record``, ``report``, and each figure's.

    Raises:
        StoreError: One of them cannot be written.
    """
    drawn = list(drawings(found))
    return {"record": folder / RECORD} | write_page(render_landscape(found, drawn), drawn, folder)


def drawings(found: Landscape) -> Iterator[Drawing]:
    """Yield one figure of all lines, or one for each plane, all on one scale; none where no loss is finite."""
    if not _is_drawable(found):
        return
    with mpl.rc_context(RC):
        if found.spec.dimensions == 1:
            figure, axes = panel(6.2, 4.0)
            plot_line([one.surface() for one in found.slices], axes, labels=[one.label for one in found.slices])
            _colour(axes, found.slices)
            yield Drawing("lines", figure, f"The loss along {_WHAT[found.spec.directions]}", caption(found))
            return
        levels = common_levels(*(one.surface() for one in found.slices))
        for index, one in enumerate(found.slices):
            figure, axes = panel(5.2, 4.2)
            plot_plane(one.surface(), axes, levels=levels)
            _mark(axes, one)
            axes.set_title(one.label)
            yield Drawing(f"plane{index}", figure, f"The loss over a plane, {one.label}", caption(found))


def caption(found: Landscape) -> str:
    """Say what may be read off the figures."""
    scale = " All have one scale." if len(found.slices) > 1 else ""
    blank = " Where the loss is not finite nothing is drawn."
    return f"The loss along {_WHAT[found.spec.directions]}. {_UNITS[found.spec.unit]}{scale}{blank}"


def landscape_table(found: Landscape) -> Table:
    """Return the numbers as a table for a terminal."""
    title = f"Along {_WHAT[found.spec.directions]}, on {_examples(found)}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    heads, rows = numbers(found)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def numbers(found: Landscape) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of the table."""
    with_values = any(one.eigenvalues for one in found.slices)
    heads = ["", "Loss there", "Lowest", "Highest", "Reaches", *(["Eigenvalues"] if with_values else [])]
    rows = []
    for one in found.slices:
        finite = [loss for loss in one.loss if abs(loss) < float("inf")]
        ends = (number(min(finite)), number(max(finite))) if finite else ("–", "–")
        far = max(max(map(abs, axis)) * length for axis, length in zip(one.axes, one.lengths, strict=True))
        pairs = zip(one.eigenvalues, one.eigenvalue_errors, strict=True)
        values = [", ".join(precise(*pair) for pair in pairs)] if with_values else []
        rows.append([one.label, number(one.loss_there), *ends, f"{far:.3g}", *values])
    return heads, rows


def render_landscape(found: Landscape, drawn: list[Drawing]) -> str:
    """Return the page's HTML; every text that came from outside is escaped."""
    heads, rows = numbers(found)
    labels = [one.label for one in found.slices]
    return render_page(
        "landscape.html.j2",
        scripted=bool(solids := _solids(found)),
        found=found,
        title=" and ".join(labels) if len(labels) < 3 else f"{labels[0]} and {len(labels) - 1} more",
        what=_WHAT[found.spec.directions],
        examples=_examples(found),
        summary=DATA.get(found.spec.data or "", ""),
        heads=heads,
        rows=rows,
        figures=[inline_svg(d.figure, d.name, d.alt) for d in drawn],
        caption=caption(found),
        solids=solids,
        places=[_place(mark) for one in found.slices for mark in one.marks],
        command=command(found),
        environment=sorted(found.environment.items()),
    )


def command(found: Landscape) -> str:
    """Return the command that finds the same again."""
    spec = found.spec
    words = ["flatmin", "landscape", *spec.weights, "--directions", spec.directions]
    words += ["--dimensions", str(spec.dimensions), "--points", str(spec.points)]
    words += [] if spec.unit is None else ["--unit", spec.unit]
    words += [] if spec.reach is None else ["--reach", f"{spec.reach:g}"]
    words += ["--data", spec.data or "", "--split", spec.split]
    words += ["--examples", str(spec.examples), "--batch-size", str(spec.batch_size)]
    words += [] if spec.head_seed is None else ["--head-seed", str(spec.head_seed)]
    words += [] if spec.model == "auto" else ["--model", spec.model]
    return shlex.join([*words, "--seed", str(spec.seed), "--device", spec.device])


def _is_drawable(found: Landscape) -> bool:
    return any(abs(loss) < float("inf") for one in found.slices for loss in one.loss)


def _colour(axes: Axes, slices: tuple[Slice, ...]) -> None:
    """Give the lines of runs the looks that their methods have in every figure."""
    methods = [one.method for one in slices if one.method is not None]
    if len(set(methods)) < len(slices):  # two of one method would look alike
        return
    for line, style in zip(axes.get_lines(), method_styles(tuple(methods)).values(), strict=False):
        line.set(color=style.colour.light, linestyle=(0, style.dashes) if style.dashes[0] is not None else "-")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)


def _mark(axes: Axes, one: Slice) -> None:
    """Name the solutions that a plane goes through."""
    for mark in one.marks:
        axes.plot(*mark.at, "o", color="white", markeredgecolor=INK.light, markersize=6)
        axes.annotate(mark.label, mark.at, xytext=(6, 6), textcoords="offset points", color="white", weight="bold")


def _place(mark: Mark) -> str:
    x, y = (number(value) for value in mark.at)
    off = f", off the plane by {number(mark.distance)}" if mark.distance > 0 else ""
    return f"{mark.label} is at ({x}, {y}){off}."


def _solids(found: Landscape) -> str:
    """Return the planes for the page's script, each as a square, all on one scale; nothing for lines."""
    if found.spec.dimensions == 1 or not _is_drawable(found):
        return ""
    square = tuple(torch.linspace(-1, 1, found.spec.points, dtype=torch.float64).tolist())
    planes = [_as_square(one, square) for one in found.slices]
    scale = common_scale(planes)
    return "" if scale is None else solid(planes, [one.label for one in found.slices], scale)


def _as_square(one: Slice, square: tuple[float, ...]) -> Surface:
    """Return a plane as those of comparisons are kept."""
    loss = tuple(tuple(row) for row in one.surface().loss.tolist())
    return Surface(task="", method=one.method or "", seed=0, coordinates=square, loss=loss)


def _examples(found: Landscape) -> str:
    return examples_text(found.count, found.available, found.spec.split, found.spec.data)
