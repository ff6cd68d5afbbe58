"""Formulas as MathML: browsers draw it themselves, so a page needs no script, no network and no TeX.

Sphinx's own renderers load MathJax from the network or call LaTeX. math-core converts at build time, and a formula that
it does not know is a warning, hence an error of the build.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging

CONVERTER = LatexToMathML(annotation=True, fancy_error=False)  # the annotation is what copying and screen readers get
LOGGER = logging.getLogger(__name__)


def mathml(node: nodes.Element, *, display: bool) -> str:
    """Return the formula of a node as MathML."""
    formula = node.astext().strip()
    if display and "\\\\" in formula and "\\begin" not in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"  # lines, as Sphinx's other renderers take them
    try:
        return CONVERTER.convert_with_local_state(formula, displaystyle=display)
    except LatexError as error:
        LOGGER.warning("formula %r: %s", formula, error, location=node)
        return ""


def visit_inline(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own, which scrolls where the window is narrower."""
    self.body.append(f'<div class="math-block">{mathml(node, display=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Name the renderer, which ``html_math_renderer`` chooses."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
