"""Pages from templates: one file with everything in it, no request to anywhere.

A page's own policy (Content-Security-Policy) forbids all scripts but the one of this package, which is named by its
hash and turns loss surfaces; whatever came from outside cannot run, even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from flatmin_lab.recipes.outcome import written
from flatmin_lab.report.style import all_colours

if TYPE_CHECKING:
    from flatmin_lab.recipes.outcome import Table

_MOST_LETTERS = 3  # of a number: NaN, 1e−5


def render_page(template: str, *, scripted: bool = False, **values: Any) -> str:
    """Return the HTML of a template of this package; every text among ``values`` is escaped.

    Args:
        template: Its name; it extends ``base.html.j2``.
        scripted: Whether the page has loss surfaces to turn.
        values: What it shows.
    """
    style = Markup(_resource("page.css"))  # noqa: S704 (a file of this package)
    script = Markup(_resource("surfaces.js")) if scripted else ""  # noqa: S704 (a file of this package)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    source = Markup(f"'sha256-{digest}'" if scripted else "'none'")  # noqa: S704 (a hash)
    page = _environment().get_template(template)
    return page.render(colours=all_colours(), style=style, script=script, script_source=source, **values)


def shown(table: Table) -> dict[str, Any]:
    """Return a table as ``table.html.j2`` takes it: cells as people read them, columns of words told from numbers."""
    rows = [[written(cell) for cell in row] for row in table.rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(table.columns)
    is_text = [i == 0 or any(_is_words(cell) for cell in column) for i, column in enumerate(columns)]
    return {"name": table.name, "caption": table.caption, "heads": table.columns, "rows": rows, "is_text": is_text}


def _is_words(cell: str) -> bool:
    return sum(map(str.isalpha, cell)) > _MOST_LETTERS


@cache
def _environment() -> Environment:
    loader = FunctionLoader(_resource)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _resource(name: str) -> str:
    return files("flatmin_lab.report").joinpath(name).read_text(encoding="utf-8")
