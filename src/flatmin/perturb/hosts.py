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

    The topmost of them are looked up when the optimizer is made and again at its first step, among the live modules
    that Python's garbage collector tracks (a few tens of milliseconds), and held weakly; what is below them is walked
    anew each time. So the one-line change of an optimizer is enough; where this search should not be made, or the
    modules were frozen out of it (``gc.freeze``), name the model.

    Args:
        model: The model, to search no further.

    Raises:
        ArgumentTypeError: ``model`` is no module.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model is a {type(model).__name__}, but a torch.nn.Module is needed, or nothing.")
        self._model = model
        self._tops: list[weakref.ref[nn.Module]] = []
        self._parameters: tuple[int, ...] | None = None
        self._searches = 0

    def modules(self, parameters: Iterable[Tensor]) -> list[nn.Module]:
        """Return the modules around ``parameters``, each once."""
        return all_within(self.topmost(parameters))

    def topmost(self, parameters: Iterable[Tensor]) -> list[nn.Module]:
        """Return those modules around ``parameters`` that no other contains."""
        if self._model is not None:
            return [self._model]
        tops = [reference() for reference in self._tops]
        identities = tuple(map(id, parameters))
        if identities != self._parameters or None in tops or self._searches < 2:
            # Twice for each set: when the optimizer is made, while sharded parameters are sure to be in their modules,
            # and at its first step, when the model has been wrapped by whatever wraps it.
            self._searches = 1 if identities != self._parameters else 2
            tops = [top for top in tops if top is not None] + _search(frozenset(identities))
            self._tops, self._parameters = [weakref.ref(top) for top in tops], identities
        return [top for top in tops if top is not None]


def all_within(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return ``modules`` and their descendants, each once."""
    return list({id(m): m for module in modules for m in module.modules()}.values())


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
