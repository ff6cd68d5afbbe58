"""The directive ``api``: a table of public names of a module and, below it, each with its docstring.

.. code-block:: rst

   .. api:: flatmin

      NSO WPSGD

``tests/test_docs_site.py`` reads the same lists, so that no public name is forgotten.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import mock
from sphinx.util.docutils import SphinxDirective


def kind(thing: Any) -> str:
    """Return the name of autodoc's directive for an object."""
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    return "autofunction" if inspect.isroutine(thing) else "autodata"


class Api(SphinxDirective):
    """``.. api:: module``, and the names in its body."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Return the table and the entries."""
        with mock(self.config.autodoc_mock_imports):  # frameworks take seconds
            module = importlib.import_module(self.arguments[0])
        names = " ".join(self.content).split()
        lines = [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   ~{module.__name__}.{name}" for name in names]
        if unknown := [name for name in names if not hasattr(module, name)]:
            raise self.error(f"{module.__name__} has no {', '.join(unknown)}.")
        for name in names:
            directive = kind(getattr(module, name))
            lines += ["", f".. {directive}:: {module.__name__}.{name}"]
            lines += ["   :no-value:"] if directive == "autodata" else []
        return self.parse_text_to_nodes(
            StringList(lines, source=self.get_source_info()[0]), allow_section_headings=False
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Name the directive."""
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
