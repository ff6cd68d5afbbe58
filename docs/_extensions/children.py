"""Pages below a page in the navigation, which plain Markdown cannot name: ``children`` in ``conf.py`` has them."""

from __future__ import annotations

from sphinx.application import Sphinx

TREE = "\n\n```{{toctree}}\n:hidden:\n:glob:\n\n{entries}\n```\n"


def append(app: Sphinx, docname: str, content: list[str]) -> None:
    """Append the hidden tree of a page's children."""
    entries = [entry for entry in app.config.children.get(docname, []) if any(app.srcdir.glob(f"{entry}.md"))]
    if entries:
        content[0] += TREE.format(entries="\n".join(f"/{entry}" for entry in entries))


def setup(app: Sphinx) -> dict[str, bool]:
    """Name the setting, and listen to whatever is read."""
    app.add_config_value("children", {}, "env", dict)
    app.connect("source-read", append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
