"""Figures with their words: those of a measurement, and how figures are written beside their page."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib as mpl

from flatmin.landscape.curvature_plots import plot_density, plot_layers, plot_trace
from flatmin_lab.files import write_whole
from flatmin_lab.report.svg import RC, panel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from matplotlib.figure import Figure

    from flatmin.measures.measurement import Measurement

PAPER = "#ffffff"
_MOST_LAYERS = 30


@dataclass(frozen=True)
class Drawing:
    """A figure with its words.

    Attributes:
        name: Of its files, and of its identifiers on the page.
        figure: The figure.
        alt: What it shows, for those who cannot see it.
        caption: What to read off it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str


def write_page(page: str, drawn: Iterable[Drawing], folder: Path) -> dict[str, Path]:
    """Write a page, and each of its figures as SVG and PNG.

    Args:
        page: HTML.
        drawn: The figures; equal ones give equal files.
        folder: Where.

    Returns:
        The files by what they are: ``report``, and each figure's by its name.

    Raises:
        StoreError: One of them cannot be written.
    """
    files = {"report": folder / "report.html"}
    write_whole(files["report"], page.encode())
    for drawing in drawn:
        for kind in ("svg", "png"):
            name = f"{drawing.name}.{kind}"
            files[name] = folder / name
            buffer = io.BytesIO()
            with mpl.rc_context({**RC, "svg.hashsalt": drawing.name}):
                metadata = {"Date": None} if kind == "svg" else {}
                drawing.figure.savefig(buffer, format=kind, dpi=200, facecolor=PAPER, metadata=metadata)
            write_whole(files[name], buffer.getvalue())
    return files


def drawings(found: Measurement) -> Iterator[Drawing]:
    """Yield the figures of what was measured."""
    with mpl.rc_context(RC):
        if found.density is not None:
            figure, axes = panel(5.4, 3.6)
            plot_density(found.density, axes)
            yield Drawing(
                "density",
                figure,
                "Density of the Hessian's eigenvalues on a logarithmic axis, with its confidence band",
                "How many of the Hessian's eigenvalues lie where, smoothed; the band holds that with 95 % "
                "confidence. The axis is logarithmic: nearly all eigenvalues lie near zero, and the flanks of their "
                "peak are those of the smoothing; triangles mark those that are known one by one.",
            )
        if found.trace is not None and found.trace.samples is not None and found.trace.samples.numel() > 3:
            figure, axes = panel(5.4, 3.6)
            plot_trace(found.trace, axes)
            yield Drawing(
                "trace",
                figure,
                "The estimate of the trace against the number of random draws, with its confidence band",
                "The estimate of the trace after so many random draws, with its pointwise 95 % interval. The dashed "
                "line is the final value.",
            )
        if found.layers is not None and all(math.isfinite(layer.share) for layer in found.layers):
            figure, axes = panel(5.4, 1.2 + 0.19 * min(len(found.layers), _MOST_LAYERS + 1))
            plot_layers(found.layers, axes, most=_MOST_LAYERS)
            yield Drawing(
                "layers",
                figure,
                "Share of each layer in the trace of the Hessian, as bars",
                "What each layer contributes to the trace: the trace of its diagonal block of the Hessian, over the "
                "whole, with one standard error where it was sampled. Layers from input (top) to output.",
            )
