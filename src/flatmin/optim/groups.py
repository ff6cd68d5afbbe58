"""What a method keeps in the parameter groups: its radii, the steps taken and the seed of its noise.

They stand beside ``lr``, because that is the one place that every way of checkpointing carries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from flatmin.checks import choice, whole
from flatmin.noise import value_at
from flatmin.optim.patterns import (
    NOBODY,
    Owner,
    Pattern,
    Radius,
    check_radius,
    is_by_name,
    resolve,
    schedules,
    stays_in_code,
)
from flatmin.perturb import NOISE_SCALES
from flatmin.streams import Stream
from flatmin.vectors import PerParameter, Scale

STEP, SEED, NOISE_SCALE = "perturbation_step", "perturbation_seed", "noise_scale"

OwnersOf = Callable[[Iterable[Tensor]], list[Owner]]


def _nobody(parameters: Iterable[Tensor]) -> list[Owner]:
    return [NOBODY for _ in parameters]


class Groups:
    """The parameter groups of a base optimizer, as a method sees them.

    A radius is a number, a function of the step, or a mapping from patterns of parameter names to either. Numbers are
    entries of the groups and travel with checkpoints, as ``lr`` does. The others are code: they stay where they were
    given, in the constructor or in a group.

    Args:
        base: The optimizer whose groups they are; looked up anew each time, since loading replaces them.
        radii: The method's radii by name, for groups that have none of their own.
        seed: Seed of the noise.
        noise_scale: Unit of the noise, see :class:`~flatmin.perturb.Draw`, for groups that have none of their own; None
            for methods that do not ask for it.
        owners: Tells the names of parameters and the modules that hold them.

    Raises:
        ArgumentError: A radius is negative or not finite, the seed is negative, or the unit is unknown.
        ArgumentTypeError: One is of the wrong kind.
    """

    def __init__(
        self,
        base: Optimizer,
        radii: Mapping[str, Radius],
        seed: int,
        *,
        noise_scale: str | None = None,
        owners: OwnersOf = _nobody,
    ) -> None:
        self._base = base
        self._radii = dict(radii)
        self._seed = whole("seed", seed, minimum=0, hint="It is the seed of the noise.")
        self._noise_scale = None if noise_scale is None else choice(NOISE_SCALE, noise_scale, NOISE_SCALES)
        self._owners_of = owners
        self._owners: tuple[tuple[int, ...], list[Owner]] | None = None
        self._resolved: dict[tuple[str, range], tuple[list[Any], list[Any]]] = {}
        for name, radius in self._radii.items():
            check_radius(name, radius)
        self.complete()

    def complete(self) -> None:
        """Give every group its step, its seed, its radii and its unit of the noise, and check those of its own."""
        groups = self._groups
        step, seed = groups[0].get(STEP, 0), groups[0].get(SEED, self._seed)
        for group in groups:
            for name, radius in self._radii.items():
                own = group.get(name, radius)
                check_radius(f"{name} of a parameter group", own)
                if not stays_in_code(own):
                    group[name] = float(own)  # whatever kind of number it was
            if self._noise_scale is not None:
                own = group.setdefault(NOISE_SCALE, self._noise_scale)
                choice(f"{NOISE_SCALE} of a parameter group", own, NOISE_SCALES)
            group.setdefault(STEP, step)
            group.setdefault(SEED, seed)
        self.hyperparameters()  # patterns that fit no parameter are found now

    def require_complete(self) -> None:
        """Complete the groups if one was added to the base itself, or the base loaded a checkpoint of its own."""
        if any(STEP not in group for group in self._groups):
            self.complete()

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return self._groups[0][STEP]

    @property
    def stream(self) -> Stream:
        """The random stream of this step."""
        return Stream(self._groups[0][SEED], (self.step,))

    def advance(self) -> None:
        """Count a step."""
        self.require_complete()
        for group in self._groups:
            group[STEP] += 1

    def radii(self) -> dict[str, Scale]:
        """Return each radius at this step: one number, or one for each parameter where they differ."""
        return {name: self._radius(name) for name in self._radii}

    def hyperparameters(self) -> dict[str, Any]:
        """Return the radii, and the unit of the noise for methods that ask for it."""
        if self._noise_scale is None:
            return self.radii()
        units = [[group.get(NOISE_SCALE, self._noise_scale)] * len(group["params"]) for group in self._groups]
        return {**self.radii(), NOISE_SCALE: _merged(itertools.chain(*units))}

    def by_name(self, name: str, table: Mapping[Pattern, float]) -> Scale:
        """Return the value that ``table`` has for each parameter."""
        return _merged(self._resolve(name, table, range(len(self._named()))))

    def _resolve(self, name: str, table: Mapping[Pattern, Any], positions: range) -> list[Any]:
        """Return what ``table`` has for the parameters at ``positions``; matched anew only where either has changed."""
        owners = self._named()  # which lets go of what was matched before if the parameters are others
        entries = [entry for item in table.items() for entry in item]
        before, chosen = self._resolved.get((name, positions), ([], []))
        if len(before) != len(entries) or any(a is not b for a, b in zip(before, entries, strict=True)):
            chosen = resolve(name, table, owners[positions.start : positions.stop])
            self._resolved[name, positions] = entries, chosen
        return chosen

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self._base.param_groups

    def _radius(self, name: str) -> Scale:
        values = list[float]()
        for group, positions in zip(self._groups, self.positions(), strict=True):
            own = group.get(name, self._radii[name])
            if is_by_name(own):
                values += [value_at(v, self.step, name=name) for v in self._resolve(name, own, positions)]
            else:
                values += [value_at(own, self.step, name=name)] * len(positions)
        return _merged(values)

    def _named(self) -> list[Owner]:
        parameters = [parameter for group in self._groups for parameter in group["params"]]
        identities = tuple(map(id, parameters))
        if self._owners is None or self._owners[0] != identities:
            self._owners, self._resolved = (identities, self._owners_of(parameters)), {}
        return self._owners[1]

    def schedules(self) -> list[Any]:
        """Return the radii that are functions of the step, wherever they were given, each once."""
        given = [*self._radii.values(), *(group.get(name) for group in self._groups for name in self._radii)]
        return list({id(s): s for radius in given for s in schedules(radius)}.values())

    def bind_schedules(self, source: Any) -> None:
        """Let schedules that look at the run look at ``source``."""
        for schedule in self.schedules():
            if callable(bind := getattr(schedule, "bind", None)):
                bind(source)

    def stateful_schedules(self) -> list[Any]:
        """Return the schedules that have a state of their own."""
        return [schedule for schedule in self.schedules() if hasattr(schedule, "state_dict")]

    def parameters(self) -> dict[int, Tensor]:
        """Return the trainable parameters by position among all of them, which freezing does not shift."""
        everything = (parameter for group in self._groups for parameter in group["params"])
        return {i: parameter for i, parameter in enumerate(everything) if parameter.requires_grad}

    def names(self) -> dict[str, tuple[int, Tensor]]:
        """Return the trainable parameters by name, each with its position; one that is in no module goes by that."""
        found: dict[str, tuple[int, Tensor]] = {}
        for position, parameter in self.parameters().items():
            name = self._named()[position].name or f"parameter {position}"
            found[f"{name} ({position})" if name in found else name] = position, parameter
        return found

    def positions(self) -> list[range]:
        """Return the positions of each group's parameters."""
        ends = itertools.accumulate((len(group["params"]) for group in self._groups), initial=0)
        return [range(start, end) for start, end in itertools.pairwise(ends)]

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state without radii that are code."""
        state = self._base.state_dict()
        self.drop_code(state)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the base's state; radii that are code here stay, whatever the checkpoint holds."""
        given = self.given()
        self._base.load_state_dict(state)
        self.put_back(given)

    def drop_code(self, state: dict[str, Any]) -> None:
        """Take radii that are code out of a state of the base."""
        for group in state["param_groups"]:
            for name in [n for n in self._radii if stays_in_code(group.get(n))]:
                del group[name]

    def given(self) -> list[dict[str, Any]]:
        """Return the radii and the unit that each group has, for :meth:`put_back` after the base has loaded a state."""
        return [{n: group[n] for n in (*self._radii, NOISE_SCALE) if n in group} for group in self._groups]

    def put_back(self, given: list[dict[str, Any]]) -> None:
        """Put what is code, and what the checkpoint had nothing for, back where :meth:`given` found it."""
        for group, own in zip(self._groups, given, strict=True):
            if NOISE_SCALE in own:
                group.setdefault(NOISE_SCALE, own[NOISE_SCALE])
            for name, radius in self._radii.items():
                if stays_in_code(own.get(name, radius)):
                    group.pop(name, None)
                group.update({name: own[name]} if name in own and name not in group else {})
        self.complete()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_owners_of": _nobody, "_owners": None, "_resolved": {}}

    def look_up(self, owners: OwnersOf) -> None:
        """Ask ``owners`` for the names of parameters from now on, as a copy has to."""
        self._owners_of = owners


def _merged(values: Iterable[Any]) -> Any:
    """Return the one value that all are, or a value for each parameter."""
    values = tuple(values)
    return values[0] if len(set(values)) == 1 else PerParameter(values)
