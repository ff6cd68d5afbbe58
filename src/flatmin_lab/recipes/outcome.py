"""What a reproduction gives, and how it is written: tables as CSV, figures as PNG, series as CSV, and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatmin.errors import ArgumentError
from flatmin_lab.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from matplotlib.figure import Figure

Watch = Callable[[str, int, int], None]
"""Told what is done, and how much of how much."""

Cell = int | float | str

_DOTS_PER_INCH = 150

_STORED = {"Infinity": "inf", "-Infinity": "−inf"}  # how JSON has to say it


@dataclass(frozen=True)
class Table:
    """Numbers of a reproduction, beside those of the paper where it has any.

    Args:
        name: Of the file that it is written to, without its ending.
        columns: Their heads, with units.
        rows: One cell for each column.
        caption: What the table shows, in a sentence.

    Raises:
        ArgumentError: A row has not as many cells as there are columns.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ArgumentError(
                    f"row {i} of the table {self.name!r} has {len(row)} cells, but there are {len(self.columns)} "
                    "columns. Give every row one cell for each column, an empty text where nothing is known."
                )


@dataclass(frozen=True)
class Outcome:
    """What a recipe found.

    Args:
        tables: In the order of the page.
        figures: Name to what draws it, called when it is written; matplotlib is imported there.
        series: Name to the columns behind a figure: arrays of one dimension and one length.
        text: A few paragraphs of Markdown: what the paper says, what was found, and how the two differ.
    """

    tables: tuple[Table, ...]
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    series: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    text: str = ""


def written(value: Cell) -> str:
    """Return a cell as people read it: four significant digits, a real minus sign.

    Example:
        >>> written(0.123456), written(-2.5e-8), written(5000.0), written("GD"), written(float("nan"))
        ('0.1235', '−2.5e−08', '5000', 'GD', 'NaN')
    """
    if isinstance(value, str):
        return _STORED.get(value, value)
    return "NaN" if value != value else f"{value:.4g}".replace("-", "−")


def markdown(table: Table) -> str:
    """Return a table in Markdown, its caption above it.

    Example:
        >>> print(markdown(Table("t", ("step", "loss"), ((1, 0.5),), "What was found.")))
        What was found.
        <BLANKLINE>
        | step | loss |
        | --- | --- |
        | 1 | 0.5 |
    """
    lines = [table.columns, ("---",) * len(table.columns), *([written(cell) for cell in row] for row in table.rows)]
    return "\n".join([table.caption, "", *(f"| {' | '.join(line)} |" for line in lines)])


def publish(outcome: Outcome, folder: Path, *, title: str) -> dict[str, str]:
    """Write everything that a recipe found into ``folder``, each file whole or not at all.

    Args:
        outcome: What was found.
        folder: Where; made if it is not there.
        title: Of the page.

    Returns:
        What each file holds, to its name in the folder: ``page`` for the page, which shows all the others.

    Raises:
        StoreError: The folder cannot be written.
        ArgumentError: The columns of a series differ in length.
    """
    files = {table.name: f"{table.name}.csv" for table in outcome.tables}
    for table in outcome.tables:
        write_whole(folder / files[table.name], _csv(table.columns, table.rows))
    for name, columns in outcome.series.items():
        files[f"{name} (series)"] = f"{name}-series.csv"
        write_whole(folder / f"{name}-series.csv", _series(name, columns))
    for name, draw in outcome.figures.items():
        files[f"{name} (figure)"] = f"{name}.png"
        write_whole(folder / f"{name}.png", _png(draw()))
    parts = [f"# {title}", outcome.text, *(f"![{name}]({name}.png)" for name in outcome.figures)]
    parts += map(markdown, outcome.tables)
    write_whole(folder / "README.md", ("\n\n".join(filter(None, parts)) + "\n").encode())
    return {"page": "README.md", **files}


def _series(name: str, columns: Mapping[str, np.ndarray]) -> bytes:
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ArgumentError(
            f"the columns of the series {name!r} differ in length: {lengths}. They are written as one table; give "
            "those of another length under a name of their own."
        )
    return _csv(tuple(columns), zip(*(values.tolist() for values in columns.values()), strict=True))


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _png(figure: Figure) -> bytes:
    import matplotlib as mpl

    from flatmin_lab.report.style import PAPER
    from flatmin_lab.report.svg import RC

    buffer = io.BytesIO()
    with mpl.rc_context(RC):
        # Without the version of matplotlib in it, equal figures give equal files.
        figure.savefig(buffer, dpi=_DOTS_PER_INCH, facecolor=PAPER.light, metadata={"Software": None})
    return buffer.getvalue()
