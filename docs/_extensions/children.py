"""Pages below a page in the navigation, which plain Markdown cannot name: ``children`` in ``conf.py`` has them."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

TREE = "\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"


def entry(page: Path, docs: Path) -> str:
    """Return the line of a page; a folder's README goes by the folder's name."""
    name = f"/{page.relative_to(docs).with_suffix('').as_posix()}"
    return f"{page.parent.name} <{name}>" if page.stem == "README" else name


def append(app: Sphinx, docname: str, content: list[str]) -> None:
    """Append the hidden tree of a page's children, each once, in the order of the patterns."""
    docs = Path(app.srcdir)
    pages = [page for pattern in app.config.children.get(docname, []) for page in sorted(docs.glob(f"{pattern}.md"))]
    entries = [entry(page, docs) for page in dict.fromkeys(pages) if page != docs / f"{docname}.md"]
    if entries:
        content[0] += TREE.format(entries="\n".join(entries))


def setup(app: Sphinx) -> dict[str, bool]:
    """Name the setting, and listen to whatever is read."""
    app.add_config_value("children", {}, "env", dict)
    app.connect("source-read", append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
