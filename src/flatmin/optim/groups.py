"""What a method keeps in the parameter groups: its radii, the steps taken and the seed of its noise.

They stand beside ``lr``, because that is the one place that every way of checkpointing carries.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from flatmin.checks import whole
from flatmin.noise import Schedule, value_at
from flatmin.streams import Stream
from flatmin.vectors import PerParameter, Scale

STEP, SEED = "perturbation_step", "perturbation_seed"


class Groups:
    """The parameter groups of a base optimizer, as a method sees them.

    A radius is a number or a function of the step. Numbers are entries of the groups and travel with checkpoints, as
    ``lr`` does. Functions are code: they stay where they were given, in the constructor or in a group.

    Args:
        base: The optimizer whose groups they are; looked up anew each time, since loading replaces them.
        radii: The method's radii by name, for groups that have none of their own.
        seed: Seed of the noise.

    Raises:
        ArgumentError: A radius is negative or not finite, or the seed is negative.
        ArgumentTypeError: One is no number.
    """

    def __init__(self, base: Optimizer, radii: Mapping[str, float | Schedule], seed: int) -> None:
        self._base = base
        self._radii = dict(radii)
        self._seed = whole("seed", seed, minimum=0, hint="It is the seed of the noise.")
        for name, radius in self._radii.items():
            value_at(radius, 0, name=name)
        self.complete()

    def complete(self) -> None:
        """Give every group its step, its seed and its radii, and check the radii of its own."""
        groups = self._base.param_groups
        step, seed = groups[0].get(STEP, 0), groups[0].get(SEED, self._seed)
        for group in groups:
            for name, radius in self._radii.items():
                own = group.get(name, radius)
                number = value_at(own, 0, name=f"{name} of a parameter group")
                if not callable(own):
                    group[name] = number  # a float, whatever kind of number it was
            group.setdefault(STEP, step)
            group.setdefault(SEED, seed)

    def require_complete(self) -> None:
        """Complete the groups if one was added to the base itself, or the base loaded a checkpoint of its own."""
        if any(STEP not in group for group in self._base.param_groups):
            self.complete()

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return self._base.param_groups[0][STEP]

    @property
    def stream(self) -> Stream:
        """The random stream of this step."""
        return Stream(self._base.param_groups[0][SEED], (self.step,))

    def advance(self) -> None:
        """Count a step."""
        self.require_complete()
        for group in self._base.param_groups:
            group[STEP] += 1

    def radii(self) -> dict[str, Scale]:
        """Return each radius at this step: one number, or one for each parameter where groups differ."""
        return {name: self._radius(name) for name in self._radii}

    def _radius(self, name: str) -> Scale:
        groups = self._base.param_groups
        values = [value_at(group.get(name, self._radii[name]), self.step, name=name) for group in groups]
        if len(set(values)) == 1:
            return values[0]
        return PerParameter(tuple(v for v, group in zip(values, groups, strict=True) for _ in group["params"]))

    def parameters(self) -> dict[int, Tensor]:
        """Return the trainable parameters by position among all of them, which freezing does not shift."""
        everything = (parameter for group in self._base.param_groups for parameter in group["params"])
        return {i: parameter for i, parameter in enumerate(everything) if parameter.requires_grad}

    def positions(self) -> list[range]:
        """Return the positions of each group's parameters."""
        ends = itertools.accumulate((len(group["params"]) for group in self._base.param_groups), initial=0)
        return [range(start, end) for start, end in itertools.pairwise(ends)]

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state without radii that are functions."""
        state = self._base.state_dict()
        for group in state["param_groups"]:
            for name in [n for n in self._radii if callable(group.get(n))]:
                del group[name]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the base's state; radii that are functions here stay, whatever the checkpoint holds."""
        given = [{n: group[n] for n in self._radii if n in group} for group in self._base.param_groups]
        self._base.load_state_dict(state)
        for group, own in zip(self._base.param_groups, given, strict=True):
            for name, radius in self._radii.items():
                if callable(own.get(name, radius)):
                    group.pop(name, None)
                group.update({name: own[name]} if name in own and name not in group else {})
        self.complete()
