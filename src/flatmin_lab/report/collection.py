"""One page of several reproductions and comparisons: the paper's numbers beside ours, the figures and the text."""

from __future__ import annotations

import base64
import csv
import io
import struct
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from flatmin_lab.files import write_whole
from flatmin_lab.recipes.outcome import Table
from flatmin_lab.recipes.reproductions import REPRODUCTIONS
from flatmin_lab.report.html import render_page, shown
from flatmin_lab.report.markup import as_latex, as_markdown
from flatmin_lab.report.page import content
from flatmin_lab.report.plain import comparison_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from flatmin_lab.report.stored import Reproduced, Stored

_DOTS_PER_PIXEL = 150 / 96  # of the figures of reproductions on a screen


def publish_collection(stored: Stored, folder: Path) -> dict[str, Path]:
    """Write the page and all tables.

    Args:
        stored: What to show.
        folder: Where; made if it is not there.

    Returns:
        The files by what they are: ``report``, ``markdown``, ``latex``, ``csv``.

    Raises:
        StoreError: One of them cannot be written.
    """
    write_whole(folder / "report.html", render_collection(stored).encode())
    return {"report": folder / "report.html", **write_tables(collection_tables(stored), folder)}


def collection_tables(stored: Stored) -> dict[str, list[Table]]:
    """Return all tables by the folder they come from."""
    return {
        **{str(place): list(found.record.tables) for place, found in stored.reproductions},
        **{str(place): comparison_tables(found) for place, found in stored.comparisons},
    }


def write_tables(tables: Mapping[str, Iterable[Table]], folder: Path) -> dict[str, Path]:
    """Write tables in Markdown, in LaTeX, and as one CSV with a line for each cell.

    Args:
        tables: By where they come from.
        folder: Where to write ``tables.md``, ``tables.tex`` and ``tables.csv``.

    Returns:
        The files by what they are: ``markdown``, ``latex``, ``csv``.
    """
    listed = [table for found in tables.values() for table in found]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("from", "table", "row", "first cell", "column", "value"))
    for place, found in tables.items():
        for table in found:
            for number, row in enumerate(table.rows):
                head = row[0] if row else ""
                writer.writerows(
                    (place, table.name, number, head, column, cell)
                    for column, cell in zip(table.columns, row, strict=True)
                )
    files = {"markdown": folder / "tables.md", "latex": folder / "tables.tex", "csv": folder / "tables.csv"}
    for what, text in (("markdown", as_markdown(listed)), ("latex", as_latex(listed)), ("csv", buffer.getvalue())):
        write_whole(files[what], text.encode())
    return files


def render_collection(stored: Stored) -> str:
    """Return the HTML of the page; every text that came from outside is escaped."""
    return render_page(
        "collection.html.j2",
        scripted=any(found.surfaces for _, found in stored.comparisons),
        reproductions=[_reproduction(place, found) for place, found in stored.reproductions],
        comparisons=[
            {"place": str(place), "name": place.name, "c": content(found, f"c{i}-")}
            for i, (place, found) in enumerate(stored.comparisons)
        ],
        skipped=stored.skipped,
    )


def _reproduction(place: Path, found: Reproduced) -> dict[str, Any]:
    record = found.record
    entry = REPRODUCTIONS.get(record.name)
    words = ["flatmin", "reproduce", record.name, "--size", record.size, "--seed", str(record.seed)]
    return {
        "place": str(place),
        "name": record.name,
        "size": record.size,
        "seed": record.seed,
        "summary": entry.summary if entry else "",
        "paper": record.paper,
        "text": prose(record.text),
        "tables": [shown(table) for table in record.tables],
        "figures": [_figure(f"{record.name}, {name}", png) for name, png in found.figures.items()],
        "seconds": f"{record.seconds:,.0f} s",
        "command": " ".join(words),
        "environment": sorted(record.environment.items()),
    }


def prose(text: str) -> Markup:
    r"""Return a few paragraphs of Markdown as HTML: none of their own, no headings, no pictures, links to https only.

    Example:
        >>> prose("**What** <b>was</b> [found](javascript:alert)")
        Markup('<p><strong>What</strong> &lt;b&gt;was&lt;/b&gt; [found](javascript:alert)</p>\n')
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.disable(["image", "heading", "lheading", "html_block", "html_inline"])
    reader.validateLink = lambda url: url.startswith("https://")
    return Markup(reader.render(text))  # noqa: S704 (it escapes what it does not make itself)


def _figure(alt: str, png: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24].ljust(8, b"\0"))
    return {
        "alt": alt,
        "source": f"data:image/png;base64,{base64.b64encode(png).decode()}",
        "width": round(width / _DOTS_PER_PIXEL),
        "height": round(height / _DOTS_PER_PIXEL),
    }
