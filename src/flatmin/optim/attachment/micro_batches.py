"""Which noise each micro-batch of a run gets: micro-batches come in pairs, and the two of a pair draw u and -u."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from flatmin.noise import Law
from flatmin.optim.groups import NOISE_SCALE, SEED, Groups
from flatmin.optim.patterns import Owner, Radius, owners
from flatmin.optim.ranks import of_this_rank, require_policy
from flatmin.perturb import Draw, Hosts
from flatmin.streams import Stream
from flatmin.vectors import is_zero

COUNT = "perturbation_micro_batch"
_SIGMA = "sigma"


class MicroBatches:
    r"""Numbers the micro-batches of a run, and knows the displacement of each.

    Number i draws :math:`(-1)^i u_{\lfloor i / 2 \rfloor}`. Where ranks are paired, i draws :math:`\pm u_i`, with the
    sign of the rank. With two micro-batches a step, or two ranks, these are the pairs of
    :class:`~flatmin.optim.NSO`: the noise of step t has the address (t, 0) below the seed.

    The number and the seed are entries of the parameter groups beside ``lr``, so that every checkpoint of the optimizer
    carries them.

    Args:
        optimizer: The optimizer whose parameters move.
        sigma: Standard deviation of the noise, for groups that have none of their own.
        noise_scale: Its unit, see :class:`~flatmin.perturb.Draw`.
        law: The law of the noise.
        seed: Seed of the noise.
        ranks: See :data:`~flatmin.optim.ranks.RankPolicy`.
        hosts: The modules around the parameters.

    Raises:
        ArgumentError: A value that cannot work.
        ArgumentTypeError: One is of the wrong kind.
    """

    def __init__(
        self, optimizer: Optimizer, *, sigma: Radius, noise_scale: str, law: Law, seed: int, ranks: str, hosts: Hosts
    ) -> None:
        def owners_of(parameters: Iterable[Tensor]) -> list[Owner]:
            parameters = list(parameters)
            return owners(parameters, hosts.topmost(parameters))

        self.ranks: str = ranks
        self._law = law
        self._sigma = sigma
        self.optimizer: Optimizer = optimizer
        self._own = [group.keys() & {_SIGMA, NOISE_SCALE} for group in optimizer.param_groups]
        self._given = list[Any]()
        self.groups: Groups = Groups(optimizer, {_SIGMA: sigma}, seed, noise_scale=noise_scale, owners=owners_of)
        require_policy(ranks, self.groups.parameters())

    def __str__(self) -> str:
        """Show the noise and how far the run has come."""
        return f"sigma={self.groups.radii()[_SIGMA]}, ranks={self.ranks!r}, after {self.number} micro-batches"

    @property
    def number(self) -> int:
        """The number of the next micro-batch, which is how many there were."""
        return self.optimizer.param_groups[0].get(COUNT, 0)

    def advance(self) -> None:
        """Count a micro-batch."""
        number = self.number + 1
        for group in self.optimizer.param_groups:
            group[COUNT] = number

    def next_moves(self) -> tuple[Draw, ...]:
        """Return the displacements that lead to the point of the next micro-batch on this rank; none at sigma 0.

        The way to -u is by u, since it is its mirror image to the last rounding.
        """
        self.groups.require_complete()
        given = self.groups.hyperparameters()
        if is_zero(given[_SIGMA]):
            return ()
        pair, sign = (self.number, 1) if self.ranks == "antithetic" else (self.number // 2, 1 - 2 * (self.number % 2))
        seed = self.optimizer.param_groups[0][SEED]
        place = of_this_rank(self.ranks, Stream(seed, (pair,)))
        draw = given[_SIGMA] * Draw(self._law, place.stream.child(0), given[NOISE_SCALE])
        return (draw,) if sign * place.sign > 0 else (draw, -draw)

    def leave(self) -> None:
        """Take out of the groups what a later attachment brings anew; the counts stay, so that its noise is fresh."""
        for group, own in zip(self.optimizer.param_groups, self._own, strict=False):
            for name in {_SIGMA, NOISE_SCALE, SEED} - own:
                group.pop(name, None)

    def bind_schedules(self, source: Any) -> None:
        """Let schedules that look at the run look at ``source``."""
        self.groups.bind_schedules(source)

    def schedules_state(self) -> list[Any]:
        """Return the states of those schedules that have one."""
        return [schedule.state_dict() for schedule in self.groups.stateful_schedules()]

    def load_schedules_state(self, states: Iterable[Any]) -> None:
        """Load what :meth:`schedules_state` returned."""
        for schedule, state in zip(self.groups.stateful_schedules(), states, strict=True):
            schedule.load_state_dict(state)

    def after_saving(self, optimizer: Optimizer, state: dict[str, Any]) -> None:  # noqa: ARG002
        """Take radii that are code out of ``state``, which the optimizer is about to return."""
        self.groups.drop_code(state)

    def before_loading(self, optimizer: Optimizer, state: dict[str, Any]) -> None:  # noqa: ARG002
        """Hold on to radii that are code, which no checkpoint brings back."""
        self._given = self.groups.given()

    def after_loading(self, optimizer: Optimizer) -> None:  # noqa: ARG002
        """Put them in the place of what was loaded."""
        self.groups.put_back(self._given)
