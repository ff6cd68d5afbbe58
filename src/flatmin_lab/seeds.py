"""One seed for a run, and independent streams for its purposes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run; different purposes and different seeds give unrelated streams.

    Args:
        seed: The run's seed.
        purpose: What the numbers are drawn for.

    Returns:
        An integer below 2**31, the same on every machine.

    Example:
        >>> derive(0, "initial weights") != derive(0, "batch order")
        True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}: {purpose}".encode()).digest()[:4], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A torch generator on the CPU for one purpose of a run: the same draws whatever the device.

    Args:
        seed: The run's seed.
        purpose: What the numbers are drawn for.

    Returns:
        The generator, seeded by `derive`.
    """
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose))
