"""Tables in Markdown and in LaTeX, with everything that either could take for markup escaped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flatmin_lab.recipes.outcome import Table, markdown, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "−": "$-$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "≤": r"$\le$",
    "∞": r"$\infty$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "σ": r"$\sigma$",
    "ρ": r"$\rho$",
    "α": r"$\alpha$",
    "η": r"$\eta$",
    "λ": r"$\lambda$",
    "₁": r"$_1$",
    "²": r"$^2$",
    "‖": r"$\|$",
    "∇": r"$\nabla$",
    "·": r"$\cdot$",
    "×": r"$\times$",
}


def as_markdown(tables: Iterable[Table]) -> str:
    r"""Return tables in Markdown; what stands in a cell cannot end it.

    Example:
        >>> print(as_markdown([Table("t", ("a|b",), (("<c>",),), "")]))
        | a\|b |
        | --- |
        | &lt;c&gt; |
        <BLANKLINE>
    """
    return "\n\n".join(markdown(_each_cell(table, _plain_markdown)).strip() for table in tables) + "\n"


def as_latex(tables: Iterable[Table]) -> str:
    r"""Return tables in LaTeX, as floats with the rules of booktabs; every special character is escaped.

    Example:
        >>> print(as_latex([Table("t", ("method", "error"), (("a_b", 0.5),), "50 % off.")]))
        % needs \usepackage{booktabs}
        \begin{table}
        \centering
        \caption{50 \% off.}
        \label{tab:t}
        \begin{tabular}{lr}
        \toprule
        method & error \\
        \midrule
        a\_b & 0.5 \\
        \bottomrule
        \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    return "\n".join(["% needs \\usepackage{booktabs}", *(line for table in tables for line in _latex(table)), ""])


def _latex(table: Table) -> Iterator[str]:
    table = _each_cell(table, latex_escaped)
    yield from (r"\begin{table}", r"\centering")
    if table.caption:
        yield rf"\caption{{{table.caption}}}"
    label = "".join(c if c.isalnum() and c.isascii() else "-" for c in table.name)
    yield rf"\label{{tab:{label}}}"
    yield rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}"
    yield from (r"\toprule", rf"{' & '.join(table.columns)} \\", r"\midrule")
    yield from (rf"{' & '.join(map(str, row))} \\" for row in table.rows)
    yield from (r"\bottomrule", r"\end{tabular}", r"\end{table}")


def latex_escaped(value: str) -> str:
    r"""Write text so that LaTeX prints it as it stands.

    Example:
        >>> print(latex_escaped("50 % of a_b is −1 [x]"))
        50 \% of a\_b is $-$1 {[}x]
    """
    # A bracket at the start of a line would be an argument of the line break before it.
    return "".join(_SPECIAL.get(c, c) for c in " ".join(value.split())).replace("[", "{[}")


def _plain_markdown(value: str) -> str:
    value = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\|`*_[]" else c for c in value)


def _each_cell(table: Table, way: Callable[[str], str]) -> Table:
    return replace(
        table,
        columns=tuple(map(way, table.columns)),
        rows=tuple(tuple(way(written(cell)) for cell in row) for row in table.rows),
        caption=way(table.caption),
    )
