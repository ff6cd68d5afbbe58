"""From parameters to the modules that hold them.

An optimizer is given parameters, but batch-norm statistics are buffers of modules, and a resharding is a method of one.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable

from torch import Tensor, nn


class Hosts:
    """The modules around a set of parameters: those that hold them, all that contain these, and their descendants.

    Looked up once for each set of parameters, among the live modules that Python's garbage collector tracks (a few tens
    of milliseconds), and held weakly. So the one-line change of an optimizer is enough; where this search should not be
    made, or the modules were frozen out of it (``gc.freeze``), name the model.

    Args:
        model: The model, to search no further.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = None if model is None else weakref.ref(model)
        self._found: list[weakref.ref[nn.Module]] = []
        self._parameters: tuple[int, ...] | None = None

    def modules(self, parameters: Iterable[Tensor]) -> list[nn.Module]:
        """Return the modules around ``parameters``, each once."""
        model = None if self._model is None else self._model()
        if model is not None:
            return list(model.modules())
        identities = tuple(map(id, parameters))
        if identities != self._parameters:
            self._found = [weakref.ref(module) for module in _search(frozenset(identities))]
            self._parameters = identities
        return [module for reference in self._found if (module := reference()) is not None]


def _search(parameters: frozenset[int]) -> list[nn.Module]:
    # type(o), not isinstance(o, ...): the latter asks lazy proxies for their class, which may run foreign code.
    live = [o for o in gc.get_objects() if issubclass(type(o), nn.Module) and "_modules" in o.__dict__]
    around = {id(m) for m in live if any(id(p) in parameters for p in m._parameters.values())}
    grew = bool(around)
    while grew:  # upwards: from holders to what contains them
        containers = {id(m) for m in live if any(id(child) in around for child in m._modules.values())}
        grew = not containers <= around
        around |= containers
    found: dict[int, nn.Module] = {}
    for module in live:
        if id(module) in around:
            found.update((id(m), m) for m in module.modules())
    return list(found.values())
