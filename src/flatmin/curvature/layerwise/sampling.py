"""The traces of all diagonal blocks from common probes, the blocks that are not known well enough alone at last."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.draws import block_width, columns
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from flatmin.curvature.counted import Counted
    from flatmin.streams import Stream

_ROUND = 32  # probes before a standard error is believed


@dataclass(frozen=True)
class Tolerance:
    """What error each block may have: max(``atol``, ``rtol`` · |value|); ``atol`` of shape (B,)."""

    rtol: float
    atol: Tensor

    def allowed(self, values: Tensor) -> Tensor:
        """Return the variance that each block's value may have."""
        return torch.maximum(self.rtol * values.abs(), self.atol).square()


@dataclass
class BlockTraces:
    """Traces of B blocks, to which estimates of their parts are added.

    Attributes:
        values: (B,), float64 on the CPU.
        covariance: Of the values, (B, B).
        samples: The draws behind a value, (n,), where there were any.
    """

    values: Tensor
    covariance: Tensor
    samples: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, draws: Tensor) -> BlockTraces:
        """Return what ``draws`` (n, B), float64 on the CPU, tell of all blocks; errors are NaN for a single draw."""
        n, blocks = draws.shape
        covariance = (
            torch.cov(draws.T).reshape(blocks, blocks) / n if n > 1 else draws.new_full((blocks,) * 2, math.nan)
        )
        return cls(draws.mean(dim=0), covariance, dict(enumerate(draws.T)))

    @property
    def variances(self) -> Tensor:
        """The variance of each value, (B,)."""
        return self.covariance.diagonal()

    def met(self, tolerance: Tolerance) -> bool:
        """Tell whether every value meets it, and rests on enough draws to know."""
        enough = all(len(drawn) >= _ROUND for drawn in self.samples.values())
        return enough and bool((self.variances <= tolerance.allowed(self.values) * (1 + 1e-9)).all())

    def add(self, blocks: list[int], draws: Tensor) -> None:
        """Add to the values of ``blocks`` the mean of ``draws`` (n, len(blocks)), which are kept as samples."""
        rows = torch.tensor(blocks)
        self.samples |= {block: draws[:, i] + self.values[block] for i, block in enumerate(blocks)}
        self.values[rows] += draws.mean(dim=0)
        self.covariance[rows[:, None], rows] += torch.cov(draws.T).reshape(len(blocks), -1) / len(draws)

    def needed(self, blocks: list[int], draws: Tensor, tolerance: Tolerance) -> Tensor:
        """Return how many draws ``blocks`` take in all, given some; at least those that make an error credible."""
        variances, before = draws.var(dim=0), self.variances[blocks]
        left = tolerance.allowed(self.values.index_add(0, torch.tensor(blocks), draws.mean(dim=0)))[blocks] - before
        left = torch.where(left > 0, left, before)  # where it cannot be met: until sampling matters no more
        return torch.where(variances > 0, variances / left, torch.zeros_like(variances)).clamp(min=_ROUND)


def sampled_traces(
    A: Counted,
    places: Sequence[Sequence[slice]],
    found: BlockTraces,
    *,
    budget: int,
    tolerance: Tolerance | None,
    stream: Stream,
) -> None:
    r"""Add to ``found`` the traces of diagonal blocks of A, estimated by probes common to all of them.

    .. math:: \operatorname{tr} A_{bb} = \mathbb E\,[z_b^\top (Az)_b]

    holds for every block b with one and the same z, whose product serves them all. But the noise of block b is
    :math:`2\|A_{bb}\|^2 + \sum_{c \ne b} \|A_{bc}\|^2`, and a small block drowns in what comes from the large ones.
    With a tolerance, therefore, the blocks that meet it are settled, and the others get fresh probes that vanish
    outside them, until nothing is left. Blocks that are settled at once have correlated errors, others independent
    ones.

    Args:
        A: The operator.
        places: For each block, where its sampled coordinates lie; none if its trace is known.
        found: What is known of the traces already; changed in place.
        budget: Products to spend, at least 2.
        tolerance: What each block may be off.
        stream: Of the probes.
    """
    support = [block for block, place in enumerate(places) if place]
    forms = torch.zeros(0, len(support), dtype=torch.float64)
    first, count = 0, budget if tolerance is None else min(budget, _ROUND)  # probes on this support: first + (0 ... )
    while support:
        fresh = _forms(A, [places[b] for b in support], stream, first + len(forms), count - len(forms))
        forms, left = torch.cat([forms, fresh]), budget - first - count
        if tolerance is None or left == 0:
            found.add(support, forms)
            break
        needed = found.needed(support, forms, tolerance)
        done = needed <= count
        if bool(done.all()):
            found.add(support, forms)
            break
        if bool(done.any()) and left >= _ROUND and float(needed[~done].max()) > 2 * count:
            # The others are far off: settle what is done, and go on without its noise.
            found.add([b for b, met in zip(support, done.tolist(), strict=True) if met], forms[:, done])
            support = [b for b, met in zip(support, done.tolist(), strict=True) if not met]
            forms, first, count = forms.new_zeros(0, len(support)), first + count, _ROUND
        else:
            count += min(count, left)


def _forms(A: Counted, places: Sequence[Sequence[slice]], stream: Stream, first: int, count: int) -> Tensor:
    """Return z_b'(Az)_b for ``count`` probes z that vanish outside the blocks, shape (count, B)."""
    width, wide = block_width(A.d), accumulation_dtype(A.device)
    everywhere = sum(s.stop - s.start for place in places for s in place) == A.d
    rows = []
    for start in range(first, first + count, width):
        probes = columns(A, stream, start, min(width, first + count - start))
        if not everywhere:
            inside = torch.zeros_like(probes)
            for place in places:
                for s in place:
                    inside[s] = probes[s]
            probes = inside
        images = A.products(probes)
        per_block = [
            torch.stack([(probes[s] * images[s]).sum(dim=0, dtype=wide) for s in place]).sum(dim=0) for place in places
        ]
        rows.append(torch.stack(per_block, dim=1).to("cpu", torch.float64))
    return torch.cat(rows)
