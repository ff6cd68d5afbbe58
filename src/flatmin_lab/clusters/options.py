"""What a user says of where runs are made; without torch, so that help appears at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cluster = Literal["local", "ray", "slurm"]
"""Where runs are made: on this machine, on a Ray cluster, or by Slurm."""


@dataclass(frozen=True)
class SlurmOptions:
    """What each run asks of Slurm.

    Attributes:
        partition: Where to run; Slurm's default if not given.
        account: Whom to charge; Slurm's default if not given.
        minutes: Time for one run, curvature and surface included.
        memory: Memory for one run in GB.
    """

    partition: str | None = None
    account: str | None = None
    minutes: int = 60
    memory: float = 4.0
