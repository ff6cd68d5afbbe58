"""Whether the ranks of a distributed run draw the same noise: one perturbation a step, or one for each rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from flatmin.checks import choice
from flatmin.distributed import is_sharded
from flatmin.errors import ArgumentError
from flatmin.streams import Stream

RankPolicy = Literal["shared", "independent", "antithetic"]
"""``"shared"``: all ranks draw the same noise, as one process would. ``"independent"``: each its own, so that N ranks
average over N times as many perturbations at the same price. ``"antithetic"``: ranks 2i and 2i + 1 draw u and -u."""

RANK_POLICIES: tuple[str, ...] = get_args(RankPolicy)


class Place(NamedTuple):
    """What one rank draws: from which stream, and with which sign."""

    stream: Stream
    sign: int


def of_this_rank(policy: str, stream: Stream) -> Place:
    """Return where this rank draws its noise; a single process is rank 0 of 1.

    Raises:
        ArgumentError: ``policy`` is ``"antithetic"`` and one rank has no partner.
    """
    if policy == "shared":
        return Place(stream, 1)
    is_running = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if is_running else (0, 1)
    if policy == "independent":
        return Place(stream.child(rank), 1)
    if world % 2:
        raise ArgumentError(
            f"ranks is 'antithetic', which pairs ranks 2i and 2i + 1, but there are {world} of them. Start an even "
            "number of processes, or take ranks='independent'."
        )
    return Place(stream.child(rank // 2), -1 if rank % 2 else 1)


def require_policy(policy: str, parameters: Mapping[int, Tensor], *, climbs_alone: bool = False) -> str:
    """Return ``policy`` if it is one and fits ``parameters``, or say what to do.

    Args:
        policy: A :data:`RankPolicy`.
        parameters: Position to parameter.
        climbs_alone: Whether the first gradient of the method stays on its rank.
    """
    choice("ranks", policy, RANK_POLICIES)
    if climbs_alone and any(is_sharded(parameter) for parameter in parameters.values()):
        raise ArgumentError(
            "local_ascent is True, but the parameters are sharded: every gradient is reduced to shards over the ranks, "
            "so that none can climb its own. Leave local_ascent=False, or put the loop over probes inside each "
            "micro-batch, which makes every micro-batch climb its own gradient."
        )
    if policy != "shared" and any(is_sharded(parameter) for parameter in parameters.values()):
        raise ArgumentError(
            f"ranks is {policy!r}, but the parameters are sharded: each rank holds a slice of one model, and slices of "
            "different perturbations make no perturbation. Leave ranks='shared'."
        )
    return policy
