r"""Every product serves both as a sketch of the range and as a probe of what the others leave.

- Epperly, E., Tropp, J. and Webber, R. (2024). XTrace: making the most of every sample in stochastic trace estimation.
  SIAM Journal on Matrix Analysis and Applications 45.
- Efron, B. and Stein, C. (1981). The jackknife estimate of variance. Annals of Statistics 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.basis import inner, norms
from flatmin.curvature.trace.complement import dots, extend, images_of, new_basis
from flatmin.curvature.trace.hutchinson import all_columns, hutchinson
from flatmin.curvature.trace.sampling import SMALL_SAMPLE, cautious
from flatmin.curvature.trace.symmetry import check_symmetric

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.setup import Setup


def xtrace(setup: Setup) -> TraceEstimate:
    r"""Return the mean of n exchangeable estimates, each of which leaves one probe out of the sketch (Epperly et al.).

    With Y = AΩ for n probes ω and Q(i) an orthonormal basis of Y without its i-th column,

    .. math:: t_i = \operatorname{tr} Q_{(i)}^\top A Q_{(i)} + \omega_i^\top (I - Q_{(i)}Q_{(i)}^\top)\, A\,
        (I - Q_{(i)}Q_{(i)}^\top)\, \omega_i

    is unbiased, and so is the mean of the t_i, at 2n products: AΩ and AQ. With probes on the sphere the projected probe
    is given the length it would have in the complement (section 2.3 of the paper).

    The t_i share most of Q, so they are positively correlated, and their spread s/√n, the paper's error estimate, is
    too small: 0.6 to 1 of the truth. The jackknife, XTrace made again without each probe in turn at no further product,
    is too large (Efron and Stein 1981). Of the parts V₁ and V₂ of the variance due to single probes and to pairs, the
    spread measures V₁ + V₂/2 and the jackknife V₁ + 2V₂; the standard error is the root of a third of
    2 · spread² + jackknife².

    Memory: 2n vectors, and n more for a short while.

    Raises:
        ArgumentError: The operator is not symmetric.
    """
    A, goal = setup.A, setup.goal
    most = setup.left // 2
    if A.d <= setup.left and (not goal.asked or A.d <= 2 * SMALL_SAMPLE):
        return all_columns(setup)
    if most < 2:
        return hutchinson(setup, reason="fewer than 4 products leave none for a sketch")
    sketch = _Sketch(setup)
    count = min(most, SMALL_SAMPLE) if goal.asked else most
    while True:
        exchange = sketch.grown(count)
        samples, stderr = exchange.samples(), exchange.stderr()
        value = setup.known + float(samples.mean())
        enough = count >= SMALL_SAMPLE and cautious(stderr, count) <= goal.tolerance(value)
        if not goal.asked or enough or count == most:
            return replace(
                setup.estimate(value, method="xtrace", converged=enough or not goal.asked),
                stderr=math.hypot(stderr, setup.known_stderr),
                samples=samples + setup.known,
            )
        count = min(most, math.ceil(1.25 * count))
        if 2 * count > A.d <= setup.left:  # the complement of the sketch becomes too small to sample
            return all_columns(setup)


class _Sketch:
    """Ω, an orthonormal basis Q of AΩ, and A in this basis."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._basis = new_basis(setup.A)
        self._residues = torch.empty(0, setup.A.d, dtype=self._basis.dtype, device=self._basis.device)  # of Ω
        empty = torch.zeros(0, 0, dtype=torch.float64)
        self._inside, self._images, self._probes = empty, empty, empty
        self._forms = self._lengths = torch.zeros(0, dtype=torch.float64)

    def grown(self, count: int) -> Exchange:
        """Return what is known with ``count`` probes."""
        A, probes = self._setup.A, self._setup.probes
        rows = probes.block(A, len(self._residues), count).T
        images = images_of(A, rows)
        check_symmetric(inner(rows, images))
        self._forms = torch.cat([self._forms, dots(rows, images).double()])
        self._lengths = torch.cat([self._lengths, norms(rows).square().cpu().double()])
        Q, coefficients = extend(self._basis, images)
        del images
        self._images = _beside(self._images, coefficients)
        across = self._basis.remove(images_of(A, Q))
        self._inside = _beside(self._inside, across)
        self._inside[-across.shape[1] :] = self._inside[:, -across.shape[1] :].T.clone()
        self._residues = torch.cat([self._residues, rows])
        self._probes = _beside(self._probes, torch.zeros(0, len(rows)), height=len(self._basis))
        self._probes += self._basis.remove(self._residues).double()
        return Exchange.of(
            self._inside,
            self._images,
            self._probes,
            self._forms,
            self._lengths if probes.law == "sphere" else None,
            A.d - len(self._basis),
        )


def _beside(left: Tensor, right: Tensor, height: int | None = None) -> Tensor:
    """Return two matrices side by side, the shorter one with zeros below."""
    height = max(len(left), len(right)) if height is None else height
    both = torch.zeros(height, left.shape[1] + right.shape[1], dtype=torch.float64)
    both[: len(left), : left.shape[1]] = left
    both[: len(right), left.shape[1] :] = right
    return both


@dataclass(frozen=True)
class Exchange:
    """What the leave-one-out estimates are made of, in coordinates of Q.

    Attributes:
        inside: Q'AQ, (m, m).
        images: Q'AΩ, (m, n).
        probes: Q'Ω, (m, n).
        directions: Unit vectors sᵢ ∝ R⁻ᵀeᵢ as columns, (m, n), with R = Q'AΩ: Q sᵢ is what leaves the range together
            with column i. Zero where nothing does, the other columns spanning it as well.
        forms: ωᵢ'Aωᵢ, (n,).
        lengths: ‖ωᵢ‖², (n,), if projected probes are given the length they ought to have.
        rest: Dimension of the complement of Q.
    """

    inside: Tensor
    images: Tensor
    probes: Tensor
    directions: Tensor
    forms: Tensor
    lengths: Tensor | None
    rest: int

    @classmethod
    def of(
        cls, inside: Tensor, images: Tensor, probes: Tensor, forms: Tensor, lengths: Tensor | None, rest: int
    ) -> Exchange:
        """Return it with the directions found."""
        inverse = torch.linalg.pinv(images, rtol=1e-14)
        essential = (inverse * images.T).sum(dim=1) > 1 - 1e-4  # orthogonal to the kernel of R
        directions = _unit(inverse.T) * essential
        return cls((inside + inside.T) / 2, images, probes, directions, forms, lengths, rest)

    def samples(self) -> Tensor:
        """Return the estimates t_i, (n,)."""
        s, B = self.directions, self.inside
        probes = self.probes - s * (s * self.probes).sum(dim=0)
        images = self.images - s * (s * self.images).sum(dim=0)
        outside = self.forms - 2 * (probes * images).sum(dim=0) + (probes * (B @ probes)).sum(dim=0)
        if self.lengths is not None:
            dimension = self.rest + s.square().sum(dim=0).round()
            outside = outside * dimension / (self.lengths - probes.square().sum(dim=0))
        return B.trace() - (s * (B @ s)).sum(dim=0) + outside

    def stderr(self) -> float:
        """Return the standard error of the mean of the samples."""
        n = len(self.forms)
        spread = float(self.samples().var()) / n
        means = torch.stack([self._without(j).samples().mean() for j in range(n)])
        jackknife = float(means.var()) * (n - 1) ** 2 / n
        return math.sqrt((2 * spread + jackknife) / 3)

    def _without(self, j: int) -> Exchange:
        """Return the same without probe ``j``."""
        s = self.directions[:, j : j + 1]
        others = [i for i in range(len(self.forms)) if i != j]

        def projected(columns: Tensor) -> Tensor:
            return columns - s @ (s.T @ columns)

        return Exchange(
            projected(projected(self.inside).T),
            projected(self.images[:, others]),
            projected(self.probes[:, others]),
            _unit(projected(self.directions[:, others])),
            self.forms[others],
            None if self.lengths is None else self.lengths[others],
            self.rest + int(s.any()),
        )


def _unit(columns: Tensor) -> Tensor:
    lengths = columns.norm(dim=0)
    return torch.where(lengths > 1e-8, columns / lengths, torch.zeros_like(columns))
