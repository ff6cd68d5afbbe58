"""What was measured of one model: a table for the console, figures as files, and a page with all of it."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from flatmin.curvature.results import plus_minus
from flatmin_lab.data.examples import DATA
from flatmin_lab.report.drawings import Drawing, drawings, write_page
from flatmin_lab.report.html import render_page
from flatmin_lab.report.svg import inline_svg
from flatmin_lab.report.text import examples_text, number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flatmin.curvature.layerwise import Layer
    from flatmin.measures.measurement import Measurement
    from flatmin_lab.measure import Sheet

_LARGEST = 3  # in the table


@dataclass(frozen=True)
class Row:
    """One line of the table: what, its value, how it was found, and what that took."""

    name: str
    value: str
    how: str = ""
    cost: str = ""


def publish_sheet(sheet: Sheet, folder: Path) -> dict[str, Path]:
    """Write the page and every figure as SVG and PNG.

    Args:
        sheet: What was measured.
        folder: Where.

    Returns:
        The files by what they are: ``record``, ``report``, and each figure's.

    Raises:
        StoreError: One of them cannot be written.
    """
    drawn = list(drawings(sheet.measurement))
    return {"record": folder / "measurement.json"} | write_page(render_sheet(sheet, drawn), drawn, folder)


def rows(sheet: Sheet) -> Iterator[Row]:
    """Yield the numbers line by line."""
    found = sheet.measurement
    yield Row("Loss", number(found.loss), f"accuracy {100 * sheet.accuracy:.1f} %")
    if found.trace is not None:
        trace = found.trace
        how = trace.method if trace.converged else f"{trace.method}, tolerance not met"
        yield Row("Hessian trace", precise(trace.value, trace.stderr), how, _cost(found, "trace", "with the layers"))
        yield Row("Mean eigenvalue", number(trace.value / found.num_parameters), "trace / parameters")
    if found.eigenvalues is not None:
        pairs = found.eigenvalues
        how = f"the {len(pairs)} largest in magnitude" if pairs.converged else "tolerance not met"
        values = [precise(*pair) for pair in zip(pairs.values.tolist(), pairs.errors.tolist(), strict=True)]
        names = ["Eigenvalues" if len(pairs) > 1 else "Eigenvalue", *[""] * (len(pairs) - 1)]
        yield Row(names[0], values[0], how, _cost(found, "eigenvalues", "with the trace"))
        yield from (Row("", value) for value in values[1:])
    if found.gap is not None:
        gap, smoothed = found.gap, found.gap.trace
        yield Row("Perturbation gap", precise(gap.value, gap.stderr), f"σ = {gap.sigma:g}", _cost(found, "gap"))
        yield Row("Smoothed trace", precise(smoothed.value, smoothed.stderr), "2 · gap / σ²")
    if found.density is not None:
        large = found.num_large
        how = f"beyond 1 % of the largest, of {found.num_parameters:,}"
        yield Row("Large eigenvalues", precise(large.value, large.stderr), how, _cost(found, "density"))
    if found.layers is not None:
        largest = sorted(found.layers, key=lambda layer: abs(layer.share), reverse=True)[:_LARGEST]
        for i, layer in enumerate(largest):
            cost = "" if i else _cost(found, "layers")
            yield Row("Largest layers" if i == 0 else "", _share(layer), layer.name, cost)


def precise(value: float, error: float) -> str:
    """Write a value with the digits that its error leaves, at most five; without the error where that is smaller.

    Example:
        >>> precise(2190.8612, 0.0), precise(2190.8612, 31.4), precise(114.4032, 1e-9), precise(0.5, float("nan"))
        ('2190.9', '2191 ± 31', '114.4', '0.5 ± nan')
    """
    if error == 0 or error < 5e-5 * abs(value):
        return f"{value:.5g}".replace("-", "−")
    return plus_minus(value, error).replace("-", "−")


def sheet_table(sheet: Sheet) -> Table:
    """Return the numbers as a table for a terminal."""
    found = sheet.measurement
    title = f"{sheet.kind}, {found.num_parameters:,} parameters, on {_examples(sheet)}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("How", overflow="fold")
    table.add_column("Cost", style="dim", no_wrap=True)
    for row in rows(sheet):
        table.add_row(row.name, row.value, row.how, row.cost.replace("gradients", "G"))
    total = sum(part.seconds for part in found.spent.values())
    table.caption = " ".join(
        [f"{found.gradients:.3g} G in all, {_seconds(total)}; G: a gradient of these examples.", *sheet.notes]
    )
    table.caption_justify = "left"
    return table


def render_sheet(sheet: Sheet, drawn: list[Drawing]) -> str:
    """Return the page's HTML; every text that came from outside is escaped."""
    found = sheet.measurement
    figures = [
        {"svg": inline_svg(d.figure, d.name, d.alt), "caption": d.caption, "wide": d.name == "layers"} for d in drawn
    ]
    return render_page(
        "measured.html.j2",
        sheet=sheet,
        found=found,
        examples=_examples(sheet),
        summary=DATA.get(sheet.spec.data or "", ""),
        rows=list(rows(sheet)),
        total=f"{found.gradients:.3g} gradients in all, {_seconds(sum(p.seconds for p in found.spent.values()))}",
        layers=[_layer(layer) for layer in found.layers or ()],
        figures=figures,
        reason="" if found.trace is None else found.trace.reason,
        command=command(sheet),
        environment=sorted(sheet.environment.items()),
    )


def command(sheet: Sheet) -> str:
    """Return the command that measures the same again."""
    spec = sheet.spec
    words = ["flatmin", "measure", spec.weights, "--data", spec.data or "", "--split", spec.split]
    words += ["--examples", str(spec.examples), "--batch-size", str(spec.batch_size)]
    words += ["--trace", "--rtol", f"{spec.rtol:g}", "--max-products", str(spec.max_products)] if spec.trace else []
    words += ["--eigenvalues", str(spec.eigenvalues)] if spec.eigenvalues else []
    words += [f"--{name}" for name in ("density", "layers") if getattr(spec, name)]
    words += [] if spec.gap is None else ["--gap", f"{spec.gap:g}"]
    words += [] if spec.head_seed is None else ["--head-seed", str(spec.head_seed)]
    words += [] if spec.model == "auto" else ["--model", spec.model]
    return shlex.join([*words, "--seed", str(spec.seed), "--device", spec.device])


def _examples(sheet: Sheet) -> str:
    return examples_text(sheet.measurement.num_examples, sheet.available, sheet.spec.split, sheet.spec.data)


def _layer(layer: Layer) -> dict[str, str]:
    return {
        "name": layer.name,
        "size": f"{layer.size:,}",
        "value": precise(layer.value, layer.stderr),
        "share": _share(layer),
    }


def _cost(found: Measurement, part: str, otherwise: str = "") -> str:
    spent = found.spent.get(part)
    return otherwise if spent is None else f"{spent.gradients:.3g} gradients, {_seconds(spent.seconds)}"


def _share(layer: Layer) -> str:
    if not math.isfinite(layer.share):
        return "–"  # of a trace that is zero
    return f"{precise(100 * layer.share, 100 * layer.share_stderr)} %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
