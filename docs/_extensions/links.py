"""Links as a code host follows them: to folders, and to files beside ``docs`` that have a page here.

A folder stands for its README. What has no page is named without a link. Everything else is left to MyST, for which
a link that leads nowhere is a warning, hence an error of the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

#: Files beside ``docs``, and the pages that include them.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"(?<!!)\[(?P<label>[^\[\]]+)\]\((?P<target>[^()\s#:]+)(?P<anchor>#[^()\s]*)?\)")


def follow(text: str, *, source: Path, docs: Path) -> str:
    """Return a page's text with links that lead to pages of the site."""

    def replace(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link["target"]))
        if (target / "README.md").exists():
            target /= "README.md"
        if not target.is_relative_to(docs):
            page = PAGES.get(os.path.relpath(target, docs.parent).replace(os.sep, "/"))
            if page is None:
                return link["label"]
            target = docs / page
        elif target.is_dir():
            return link["label"]
        elif not target.exists():
            return link[0]
        return f"[{link['label']}](/{target.relative_to(docs).as_posix()}{link['anchor'] or ''})"

    return LINK.sub(replace, text)


def read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Follow the links of a page in Markdown."""
    source = Path(app.env.doc2path(docname))
    if source.suffix == ".md":
        content[0] = follow(content[0], source=source, docs=Path(app.srcdir))


def read_included(app: Sphinx, path: Path, _parent: str, content: list[str]) -> None:
    """Follow the links of a file that a page includes, which are relative to that file."""
    if path.suffix == ".md":
        docs = Path(app.srcdir)
        content[0] = follow(content[0], source=docs / path, docs=docs)


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to whatever is read."""
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
