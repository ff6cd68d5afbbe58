"""The weights that a distance is measured from: where fine-tuning started, by name of the parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from flatmin.distributed import is_sharded, local, local_slice, reshard, sharded_modules
from flatmin.errors import ArgumentError, ArgumentTypeError

Names = tuple[str, ...]
"""The names of one parameter: several where weights are tied."""


def named_parameters(model: Any) -> dict[Names, nn.Parameter]:
    """Return the parameters of ``model``, each once, by all of its names.

    Raises:
        ArgumentTypeError: ``model`` is no module.
        ArgumentError: A parameter is not initialised yet.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model is a {type(model).__name__}, but a torch.nn.Module is needed.")
    reshard(sharded_modules(model.modules()))  # a sharded module shows other parameters while it is gathered
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if isinstance(parameter, UninitializedParameter):
            raise ArgumentError(
                f"Parameter {name!r} is not initialised yet (a lazy module), so it has no start. Run one forward pass "
                "before."
            )
        names.setdefault(parameter, []).append(name)
    return {tuple(several): parameter for parameter, several in names.items()}


def matches(pattern: str, names: Names) -> bool:
    """Tell whether one of ``names`` has the form of ``pattern``, as of files in a shell: ``"*.bias"``."""
    return any(fnmatchcase(name, pattern) for name in names)


def require_patterns(argument: str, patterns: Iterable[Any], known: Iterable[Names]) -> None:
    """Raise if one of ``patterns`` is no string or matches none of the ``known`` parameters."""
    known = list(known)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ArgumentTypeError(f"{argument} holds {pattern!r}, but names or patterns such as '*.bias' are needed.")
        if not any(matches(pattern, names) for names in known):
            raise ArgumentError(
                f"{argument} holds {pattern!r}, which matches no parameter that could be meant. Those are "
                f"{_list(names[0] for names in known)}."
            )


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


class Start:
    """Parameters and the weights they started from; new ones, which have no start, are measured from zero.

    The parameters are held, as an optimizer holds them, and a copy goes with its model if both are copied together.
    Memory: one copy of the parameters, each rank of its own shards.

    Args:
        parameters: Those of the model, by their names.
        measured: The names of those that a distance is measured for.
        given: Where they started, by name, with at least one name of each parameter that is not new; None: here.

    Raises:
        ArgumentTypeError: ``given`` is no mapping from names to tensors.
        ArgumentError: It names none of the model's parameters, or a tensor of another shape.
    """

    def __init__(
        self,
        parameters: Mapping[Names, nn.Parameter],
        measured: Iterable[Names],
        given: Mapping[str, Tensor] | None,
    ) -> None:
        self.parameters: dict[str, nn.Parameter] = {names[0]: parameters[names] for names in measured}
        found = self.parameters if given is None else _among(given, parameters)
        self._set({name: value for name, value in found.items() if name in self.parameters})

    def _set(self, found: Mapping[str, Tensor]) -> None:
        weights = {name: _like(parameter, found.get(name), name) for name, parameter in self.parameters.items()}
        self.weights: dict[str, Tensor] = weights
        self.new: frozenset[str] = frozenset(weights) - found.keys()

    def trainable(self) -> dict[int, str]:
        """Return the names of the parameters that take gradients now, by position among all."""
        return {i: name for i, (name, p) in enumerate(self.parameters.items()) if p.requires_grad}

    def differences(self) -> dict[int, Tensor]:
        """Return weights minus start, by position, for trainable parameters: local shards, in 32 bits at least."""
        names = self.trainable()
        mine = [_wide(local(self.parameters[name])) for name in names.values()]
        theirs = [_wide(local(self.weight(name))) for name in names.values()]
        return dict(zip(names, torch._foreach_sub(mine, theirs), strict=True)) if mine else {}

    def weight(self, name: str) -> Tensor:
        """Return where the parameter called ``name`` started, following it to other devices and types."""
        weight, parameter = self.weights[name], self.parameters[name]
        if (weight.device, weight.dtype) != (parameter.device, parameter.dtype):
            weight = self.weights[name] = weight.to(parameter.device, parameter.dtype)
        return weight

    def state_dict(self) -> dict[str, Tensor]:
        """Return the starting weights by name, without those of new parameters; sharded ones as they are."""
        return {name: weight for name, weight in self.weights.items() if name not in self.new}

    def load_state_dict(self, state: Any) -> None:
        """Measure from ``state``, as :meth:`state_dict` returned it; parameters that it leaves out are new.

        Raises:
            ArgumentError: It names other parameters, or tensors of other shapes.
        """
        state = _require_mapping("The checkpoint's start", state)
        unknown = [name for name in state if name not in self.parameters]
        if unknown:
            raise ArgumentError(
                f"The checkpoint has the start of {_list(unknown)}, for which no distance is measured here. Was it "
                "saved for another model, under a wrapper that renames parameters, or with other patterns?"
            )
        self._set(state)


def start_in(state_dict: Any) -> Any:
    """Return the start in the state of a penalty or a projection, or say that it is no such state."""
    if not isinstance(state_dict, Mapping) or set(state_dict) != {"start"}:
        keys = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else f"a {type(state_dict).__name__}"
        raise ArgumentError(
            f"The checkpoint holds {keys}, but the state of a distance has one entry, 'start'. Was another object's "
            "state passed?"
        )
    return state_dict["start"]


def _require_mapping(name: str, given: Any) -> Mapping[str, Tensor]:
    if not isinstance(given, Mapping) or not all(isinstance(v, Tensor) for v in given.values()):
        kind = "holds things that are no tensors" if isinstance(given, Mapping) else f"is a {type(given).__name__}"
        raise ArgumentTypeError(f"{name} {kind}, but weights by name are needed, as model.state_dict() returns them.")
    return given


def _among(given: Any, parameters: Mapping[Names, nn.Parameter]) -> dict[str, Tensor]:
    """Return what ``given`` holds of ``parameters``, by first names."""
    given = _require_mapping("start", given)
    found = {names[0]: given[name] for names in parameters for name in names if name in given}
    if not found:
        raise ArgumentError(
            f"start names none of the model's parameters: it has {_list(given)}, where "
            f"{_list(n[0] for n in parameters)} are needed. Was one of the two models wrapped, which renames them?"
        )
    return found


@torch.no_grad()
def _like(parameter: Tensor, value: Tensor | None, name: str) -> Tensor:
    """Return a copy of ``value``, or zeros, that is laid out as ``parameter``: device, type and shards."""
    copy = torch.zeros_like(parameter, requires_grad=False)
    if value is None:
        return copy
    if value.shape != parameter.shape:
        raise ArgumentError(
            f"start has {name!r} of shape {tuple(value.shape)}, but the parameter's is {tuple(parameter.shape)}. If it "
            "was replaced (a new head), leave it out of start: "
            f"{{n: w for n, w in start.items() if n != {name!r}}}."
        )
    if is_sharded(value) and is_sharded(parameter) and _layout(value) == _layout(parameter):
        local(copy).copy_(local(value))
    else:
        whole = value.full_tensor() if is_sharded(value) else value  # pyright: ignore[reportAttributeAccessIssue]
        local(copy).copy_(local_slice(local(whole.to(parameter.dtype)), parameter))
    return copy


def _layout(tensor: Any) -> tuple[Any, ...]:
    return tensor.device_mesh, tuple(tensor.placements)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
