r"""Random probes: vectors z with E[zzᵀ] = I, whose quadratic forms have the trace as their mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flatmin.curvature.basis import norms
from flatmin.curvature.draws import columns
from flatmin.noise import Gaussian, Rademacher
from flatmin.streams import Stream

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.counted import Counted

Law = Literal["rademacher", "gaussian", "sphere"]

_STREAM = int.from_bytes(b"trace")  # far from the steps of a training run, whose noise must not come back here


@dataclass(frozen=True)
class Probes:
    r"""A sequence of independent probes, each of which depends on the seed and on its own number alone.

    Args:
        law: ``"rademacher"`` (independent signs), ``"gaussian"``, or ``"sphere"`` (uniform, of length √d).
        seed: Seed of the sequence.
        path: Coordinates that tell this sequence from others of the same seed.

    Example:
        >>> import torch
        >>> from flatmin.curvature.counted import Counted
        >>> Probes("sphere", 0).block(Counted(torch.eye(4)), 0, 3).norm(dim=0).round(decimals=5)
        tensor([2., 2., 2.])
    """

    law: Law
    seed: int
    path: tuple[int, ...] = ()

    def block(self, A: Counted, start: int, stop: int) -> Tensor:
        """Return the probes with numbers ``start`` up to ``stop`` as columns (d, n)."""
        law = Rademacher() if self.law == "rademacher" else Gaussian()
        drawn = columns(A, Stream(self.seed).child(_STREAM, *self.path), start, stop - start, law)
        return self.fitted_(drawn, A.d)

    def fitted_(self, block: Tensor, dimension: int) -> Tensor:
        """Make the columns √``dimension`` long, in place, if this law fixes lengths: in a subspace they change."""
        return block if self.law != "sphere" else block.mul_((math.sqrt(dimension) / norms(block.T)).to(block))

    def variance(self, energy: float, trace: float, dimension: int) -> float:
        r"""Return the variance of z'Az for a symmetric A with :math:`\|A\|_F^2` = ``energy``.

        Gaussian: :math:`2 \|A\|_F^2`. Rademacher: :math:`2 (\|A\|_F^2 - \sum_i A_{ii}^2)`, of which the first term is
        returned, an upper bound that is close unless A is nearly diagonal. Sphere in D dimensions:
        :math:`\tfrac{2}{D + 2} (D \|A\|_F^2 - (\operatorname{tr} A)^2)`.
        """
        if self.law == "sphere":
            return max(0.0, 2 / (dimension + 2) * (dimension * energy - trace**2))
        return 2 * energy
