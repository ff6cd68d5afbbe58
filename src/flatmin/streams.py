"""Random streams: every draw has an address, and the address is all that is needed to draw it again.

Nothing here touches torch's, numpy's or Python's global generators.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class Stream:
    """A place in a tree of independent random streams, addressed by a seed and a path of integers.

    The optimizers use the path (step, draw); the last coordinate, the parameter, is the ``index`` of
    :meth:`generator`. Streams with different addresses are independent
    (``numpy.random.SeedSequence``); within one stream the seeds of the indices are consecutive integers, so
    that no two parameters of one draw can ever share their noise.

    Args:
        seed: Any non-negative integer.
        path: Coordinates below the seed.

    Example:
        >>> stream = Stream(seed=0).child(7)
        >>> a, b = (torch.empty(2).normal_(generator=stream.generator(i, torch.device("cpu"))) for i in (0, 1))
        >>> bool((a != b).all())
        True
    """

    seed: int
    path: tuple[int, ...] = ()

    def child(self, *coordinates: int) -> Stream:
        """Return the stream at ``coordinates`` below this one."""
        return Stream(self.seed, self.path + coordinates)

    @cached_property
    def _first(self) -> int:
        return int(np.random.SeedSequence(self.seed, spawn_key=self.path).generate_state(1, np.uint64)[0])

    def sign(self) -> int:
        """Return the fair sign, 1 or -1, of this stream."""
        return 1 if self._first & 1 else -1

    def generator(self, index: int, device: torch.device) -> torch.Generator:
        """Return a fresh generator on ``device`` for the ``index``-th tensor of this stream."""
        # 63 bits, the range that every backend takes. torch's CPU generator looks at the lowest 32 only, which is
        # why the seeds of one stream are consecutive and not hashed one by one: distinct by construction.
        return torch.Generator(device).manual_seed((self._first + index) % 2**63)
