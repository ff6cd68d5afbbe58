"""Hyperparameters by parameter name: a mapping from patterns to values where a single value may stand.

``{"*.bias": 0.0, torch.nn.LayerNorm: 0.0, "*": 0.01}`` gives each parameter the value of the first entry that fits it.
A string is matched against the full name of the parameter, as ``named_parameters()`` gives it, or against its name in
the smallest module that holds all parameters of the optimizer, with ``*``, ``?`` and ``[...]`` as in file names; a
class is that of the module that holds it. Parameters that are in no module have the empty name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.noise import Schedule, value_at

Pattern = str | type[nn.Module]
Radius = float | Schedule | Mapping[Pattern, float | Schedule]
"""What may stand for sigma or rho: a number, a function of the step, or either by parameter name."""

_T = TypeVar("_T")
_WRAPPERS = (
    "CheckpointWrapper", "DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule",
)  # fmt: skip
"""Classes that hold a model as their one child, whose name is no part of the names in it."""


class Owner(NamedTuple):
    """Where a parameter lives: its full name, the module that holds it, and its name within what is trained."""

    name: str
    module: nn.Module | None
    inner: str


NOBODY = Owner("", None, "")


def owners(parameters: Iterable[Tensor], modules: Iterable[nn.Module]) -> list[Owner]:
    """Return the owner of each parameter among ``modules`` (the topmost ones), or :data:`NOBODY`."""
    found: dict[int, Owner] = {}
    for top in modules:
        for path, module in _named_modules(top):
            for name, parameter in module._parameters.items():
                full = ".".join([*path, name])
                found.setdefault(id(parameter), Owner(full, module, full))
    those = [found.get(id(parameter), NOBODY) for parameter in parameters]
    # A model may be part of another that is alive, a pair of networks for instance: its own names fit as well.
    paths = [owner.name.split(".")[:-1] for owner in those if owner.name]
    levels = zip(*paths, strict=False)
    shared = itertools.takewhile(lambda steps: len(set(steps)) == 1, levels)
    skipped = sum(len(steps[0]) + 1 for steps in shared)
    return [owner._replace(inner=owner.name[skipped:]) for owner in those]


def _named_modules(module: nn.Module, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Yield ``module`` and what is in it, with its path, in which wrappers do not count."""
    yield path, module
    is_wrapper = type(module).__name__ in _WRAPPERS
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_modules(child, path if is_wrapper else (*path, name))


def is_by_name(value: Any) -> bool:
    """Tell whether ``value`` maps patterns to values."""
    return isinstance(value, Mapping)


def require_patterns(name: str, table: Mapping[Any, Any]) -> None:
    """Raise unless ``table`` has entries, and each key is a pattern."""
    if not table:
        raise ArgumentError(f"{name} is an empty mapping. Give a value for every parameter: {{'*': 0.01}}.")
    for key in table:
        if not isinstance(key, str) and not (isinstance(key, type) and issubclass(key, nn.Module)):
            raise ArgumentTypeError(
                f"{name} has the key {key!r}, but a key is a pattern of parameter names, such as '*.bias', or a class "
                "of modules, such as torch.nn.LayerNorm."
            )


def resolve(name: str, table: Mapping[Pattern, _T], parameters: Iterable[Owner]) -> list[_T]:
    """Return, for each parameter, the value of the first entry of ``table`` that fits it.

    Raises:
        ArgumentError: A parameter fits no entry, or a plain name (without ``*``) is that of no parameter.
    """
    parameters = list(parameters)
    for key in table:
        is_plain = isinstance(key, str) and key != "" and not any(sign in key for sign in "*?[")
        if is_plain and not any(_fits(key, owner) for owner in parameters):
            held = ", ".join(owner.name or "one that is in no module" for owner in parameters[:8])
            raise ArgumentError(
                f"{name} names the parameter {key!r}, which the optimizer does not hold under that name. Likely cause: "
                f"a misprint, or a wrapper around the model. It holds {held}, ..."
            )
    return [_first(name, table, owner) for owner in parameters]


def _first(name: str, table: Mapping[Pattern, _T], owner: Owner) -> _T:
    for key, value in table.items():
        if _fits(key, owner):
            return value
    who = f"the parameter {owner.name!r}" if owner.name else "a parameter that is in no module"
    raise ArgumentError(f"{name} has no entry for {who}. Add a last entry for all others: {{..., '*': 0.01}}.")


def _fits(key: Pattern, owner: Owner) -> bool:
    if isinstance(key, str):
        return fnmatchcase(owner.name, key) or fnmatchcase(owner.inner, key)
    return isinstance(owner.module, key)


def check_radius(name: str, radius: Any) -> None:
    """Raise unless ``radius`` is a number of at least 0, a schedule that starts so, or either by name."""
    if is_by_name(radius):
        require_patterns(name, radius)
        for key, value in radius.items():
            value_at(value, 0, name=f"{name}[{key!r}]")
    else:
        value_at(radius, 0, name=name)


def stays_in_code(radius: Any) -> bool:
    """Tell whether ``radius`` is none of the numbers that travel with checkpoints, but code that is given again."""
    return callable(radius) or is_by_name(radius)


def schedules(radius: Any) -> list[Any]:
    """Return the functions of the step in ``radius``."""
    values = radius.values() if is_by_name(radius) else [radius]
    return [value for value in values if callable(value)]
