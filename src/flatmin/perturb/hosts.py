"""From parameters to the modules that hold them.

An optimizer is given parameters, but batch-norm statistics are buffers of modules, and a resharding is a method of one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable

from torch import Tensor, nn

from flatmin.errors import ArgumentTypeError


class Hosts:
    """The modules around a set of parameters: those that hold them, all that contain these, and their descendants.

    The topmost of them are looked up once for each set of parameters, among the live modules that Python's garbage
    collector tracks (a few tens of milliseconds), and held weakly; what is below them is walked anew each time. So the
    one-line change of an optimizer is enough; where this search should not be made, or the modules were frozen out of
    it (``gc.freeze``), name the model.

    Args:
        model: The model, to search no further.

    Raises:
        ArgumentTypeError: ``model`` is no module.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model is a {type(model).__name__}, but a torch.nn.Module is needed, or nothing.")
        self._is_given = model is not None
        self._tops: list[weakref.ref[nn.Module]] = [] if model is None else [weakref.ref(model)]
        self._parameters: tuple[int, ...] | None = None

    def modules(self, parameters: Iterable[Tensor]) -> list[nn.Module]:
        """Return the modules around ``parameters``, each once."""
        tops = [reference() for reference in self._tops]
        identities = tuple(map(id, parameters))
        if not self._is_given and (identities != self._parameters or None in tops):
            tops = _search(frozenset(identities))
            self._tops, self._parameters = [weakref.ref(top) for top in tops], identities
        return list({id(m): m for top in tops if top is not None for m in top.modules()}.values())


def _search(parameters: frozenset[int]) -> list[nn.Module]:
    """Return the live modules that hold or contain ``parameters`` and that no other such module contains."""
    # type(o), not isinstance(o, ...): the latter asks lazy proxies for their class, which may run foreign code.
    live = [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and "_modules" in o.__dict__]
    containers: dict[int, list[nn.Module]] = {}
    for module in live:
        for child in module._modules.values():
            containers.setdefault(id(child), []).append(module)
    waiting = [m for m in live if any(id(p) in parameters for p in m._parameters.values())]
    around: dict[int, nn.Module] = {}
    while waiting:
        module = waiting.pop()
        if id(module) not in around:
            around[id(module)] = module
            waiting += containers.get(id(module), ())
    return [module for module in around.values() if id(module) not in containers]
