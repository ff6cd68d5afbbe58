"""Docstrings are read in a terminal first: ``|w|`` and ``(*batch, d)`` mean themselves there, and are escaped here."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

#: Code, roles, what is escaped already, emphasis.
SPAN = re.compile(r"(``.*?``|:\w+:`[^`]*`|`[^`]*`|\\.|(?<![\w*])\*{1,2}\w[^*|]*?\w\*{1,2}(?![\w*]))")
SPECIAL = re.compile(r"(\*+|\|)")
#: "k." alone, which would begin a numbered list.
INITIAL = re.compile(r"^(:\w+ [^:]+: )(\w\.)(?=\s|$)")


def escape(line: str) -> str:
    """Return a line whose bars and stars are themselves, outside of code, roles and emphasis."""
    parts = SPAN.split(line)
    parts[::2] = [SPECIAL.sub(lambda sign: "".join(f"\\{c}" for c in sign[0]), part) for part in parts[::2]]
    return INITIAL.sub(r"\1\\\2", "".join(parts))


def escape_text(lines: list[str]) -> None:
    """Escape the lines of a docstring in place, but for those of examples, formulas and literal blocks."""
    block: int | None = None  # the indentation that a block is deeper than
    example = False
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if block is not None and line.strip() and indent <= block:
            block = None
        if block is None and not example:
            if line.rstrip().endswith("::") or line.lstrip().startswith((".. math::", ".. code-block::")):
                block = indent
            else:
                lines[number] = escape(line)


def keep_colon(_app: Sphinx, what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Keep the first line of a property, which napoleon would take for its type up to a colon."""
    if what in {"attribute", "property"} and lines and ": " in lines[0]:
        lines.insert(0, "\\")


def process(_app: Sphinx, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Escape a docstring once napoleon has read its sections."""
    escape_text(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to docstrings, before and after napoleon."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", keep_colon, priority=400)
    app.connect("autodoc-process-docstring", process, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
