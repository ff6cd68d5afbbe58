"""One look for every figure and for the page: colours, markers and the theme that turns dark with the reader's system.

A figure is drawn in the light colours. On the page each of them becomes a CSS variable, so that one drawing serves both
themes. The four methods stay apart under the three colour-vision deficiencies, and by marker without any colour; the
palette follows Okabe and Ito, Color Universal Design (2008), darkened or lightened for contrast with the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flatmin_lab.report.text import method_label


@dataclass(frozen=True)
class Colour:
    """A colour with a name, for light and for dark paper."""

    name: str
    light: str
    dark: str


INK = Colour("ink", "#1b2430", "#e6e9ee")
MUTED = Colour("muted", "#5c6773", "#a3adba")
GRID = Colour("grid", "#dfe3e9", "#333b47")
PAPER = Colour("paper", "#fdfdfc", "#14181e")
THEME = (INK, MUTED, GRID, PAPER)

_Look = tuple[Colour, str, tuple[float | None, ...]]

_KNOWN: dict[str, _Look] = {
    "SGD": (Colour("sgd", "#3d4653", "#c9d1dc"), "o", (None, None)),
    "WP-SGD": (Colour("wpsgd", "#d18b00", "#f2b632"), "^", (5, 2)),
    "NSO": (Colour("nso", "#0064b4", "#58b0f5"), "s", (7, 1.5, 1.5, 1.5)),
    "SAM": (Colour("sam", "#c2477f", "#f08fbd"), "D", (2, 1.5)),
}
_SPARE: tuple[_Look, ...] = (
    (Colour("spare1", "#00825f", "#34c99c"), "v", (4, 1)),
    (Colour("spare2", "#7a4fc0", "#b79af0"), "P", (1, 1)),
    (Colour("spare3", "#a8431f", "#f0916d"), "X", (6, 2, 1, 2)),
    (Colour("spare4", "#1e8fa6", "#62cfe3"), "p", (3, 3)),
    (Colour("spare5", "#6b7d00", "#b5c94a"), "<", (8, 2)),
    (Colour("spare6", "#8a5a44", "#cfa28c"), "h", (2, 1, 5, 1)),
)


@dataclass(frozen=True)
class MethodStyle:
    """How one method looks everywhere.

    Attributes:
        label: Name in print.
        colour: Colour in both themes.
        marker: Matplotlib's marker code.
        dashes: Matplotlib's dash pattern of the mean's line; solid for the reference.
    """

    label: str
    colour: Colour
    marker: str
    dashes: tuple[float | None, ...]


Styles = Mapping[str, MethodStyle]


def method_styles(methods: tuple[str, ...]) -> dict[str, MethodStyle]:
    """Give each method its look; methods without a colour of their own take the spare ones in turn.

    Args:
        methods: Names of methods, in the order of the comparison.

    Returns:
        A style for each method.

    Example:
        >>> styles = method_styles(("sgd", "nso", "new"))
        >>> [style.marker for style in styles.values()]
        ['o', 's', 'v']
    """
    strangers = [m for m in methods if method_label(m) not in _KNOWN]
    looks = {m: _KNOWN.get(method_label(m)) or _SPARE[strangers.index(m) % len(_SPARE)] for m in methods}
    return {m: MethodStyle(method_label(m), *look) for m, look in looks.items()}


def varied(style: MethodStyle, number: int) -> MethodStyle:
    """The look of a further row of a method: its colour with another marker and other dashes; 0 is the first row.

    Example:
        >>> [varied(method_styles(("nso",))["nso"], n).marker for n in range(3)]
        ['s', 'v', 'P']
    """
    if number == 0:
        return style
    _, marker, dashes = _SPARE[(number - 1) % len(_SPARE)]
    return replace(style, marker=marker, dashes=dashes)


def all_colours() -> tuple[Colour, ...]:
    """Every colour that the page defines as a variable."""
    return (*THEME, *(look[0] for look in (*_KNOWN.values(), *_SPARE)))
