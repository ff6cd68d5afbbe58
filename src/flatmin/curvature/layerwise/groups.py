"""Which parameters make a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from flatmin.checks import choice
from flatmin.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from flatmin.curvature.layout import Layout

Groups = str | Mapping[str, str | Sequence[str]]

REST = "rest"


def grouped(layout: Layout, groups: Groups) -> dict[str, tuple[str, ...]]:
    """Return the names of the parameters of each layer, every parameter in exactly one.

    Args:
        layout: All parameters.
        groups: ``"module"``: those of one module, whose names agree up to the last dot; ``"parameter"``: each by
            itself; or layer name to pattern or patterns of parameter names. What fits none is a last layer, ``"rest"``.

    Raises:
        ArgumentError: There is no such grouping, a pattern fits no parameter, or two layers share a parameter.
        ArgumentTypeError: ``groups`` is neither a name nor a mapping.

    Example:
        >>> import torch
        >>> from flatmin.curvature.layout import Layout
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> layout = Layout.of(dict(model.named_parameters()))
        >>> grouped(layout, "module")
        {'0': ('0.weight', '0.bias'), '1': ('1.weight', '1.bias')}
        >>> grouped(layout, {"weights": "*.weight"})
        {'weights': ('0.weight', '1.weight'), 'rest': ('0.bias', '1.bias')}
    """
    if isinstance(groups, Mapping):
        return _by_pattern(layout, groups)
    if not isinstance(groups, str):
        raise ArgumentTypeError(
            f"groups is {groups!r}, but 'module', 'parameter', or a mapping of layer names to patterns of parameter "
            "names is needed, such as {'stem': 'conv1.*', 'head': ['fc.*', 'norm.*']}."
        )
    if choice("groups", groups, ("module", "parameter")) == "parameter":
        return {name: (name,) for name in layout.shapes}
    layers: dict[str, tuple[str, ...]] = {}
    for name in layout.shapes:
        module = name.rpartition(".")[0] or name
        layers[module] = (*layers.get(module, ()), name)
    return layers


def _patterns(layer: object, patterns: object) -> list[str]:
    """Return what a mapping says of one layer, checked."""
    found = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Iterable) else []
    if not isinstance(layer, str) or not found or not all(isinstance(pattern, str) for pattern in found):
        raise ArgumentTypeError(
            f"groups has the entry {layer!r}: {patterns!r}, but a name is needed and one or more patterns of parameter "
            "names, such as 'head': ['fc.*', 'norm.*']. Leave a layer without parameters out."
        )
    return found


def _by_pattern(layout: Layout, groups: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    owner: dict[str, str] = {}
    layers: dict[str, tuple[str, ...]] = {}
    for layer, patterns in groups.items():
        names = layout.matching(*_patterns(layer, patterns))
        for name in names:
            if name in owner:
                raise ArgumentError(
                    f"parameter {name!r} fits the layers {owner[name]!r} and {layer!r}, so that shares would count it "
                    "twice. Make the patterns exclude each other."
                )
            owner[name] = layer
        layers[layer] = tuple(names)
    rest = tuple(name for name in layout.shapes if name not in owner)
    if rest and REST in layers:
        raise ArgumentError(
            f"{len(rest)} parameters fit no layer, {rest[0]!r} among them, and {REST!r}, the name they would go by, is "
            "taken. Name that layer otherwise, or give it a pattern for them."
        )
    return layers | ({REST: rest} if rest else {})
