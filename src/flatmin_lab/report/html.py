"""Pages from templates: one file with everything in it, no script, no request to anywhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from flatmin_lab.report.style import all_colours


def render_page(template: str, **values: Any) -> str:
    """Return the HTML of a template of this package; every text among ``values`` is escaped.

    Args:
        template: Its name; it extends ``base.html.j2``.
        values: What it shows.
    """
    style = Markup(_resource("page.css"))  # noqa: S704 (a file of this package)
    return _environment().get_template(template).render(colours=all_colours(), style=style, **values)


@cache
def _environment() -> Environment:
    loader = FunctionLoader(_resource)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _resource(name: str) -> str:
    return files("flatmin_lab.report").joinpath(name).read_text(encoding="utf-8")
