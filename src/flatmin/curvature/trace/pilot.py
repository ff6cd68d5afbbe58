"""The first probes: what they tell of the operator, and how deflation turns them into samples of the complement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flatmin.curvature.basis import inner, norms
from flatmin.curvature.trace.complement import complement_samples, dots, images_of
from flatmin.curvature.trace.sampling import Drawn, Samples

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.krylov import Krylov
    from flatmin.curvature.trace.setup import Setup


class Pilot:
    r"""A few probes z with their images Az, kept.

    For any space V that knows nothing of them, of which V'z, V'Az and T = V'AV are known, they are probes of the
    complement already, without another product:

    .. math:: z^\top PAP z = z^\top A z - 2\, (V^\top z)^\top (V^\top A z) + (V^\top z)^\top T\, (V^\top z)

    Memory: two vectors a probe.

    Args:
        setup: Whose first probes to take.
        count: How many.

    Attributes:
        forms: z'Az.
        across: zᵢ'Azⱼ, (n, n).
        price: Gradients that a product costs, 1 for operators that do not count.
        build: What the first one cost beyond that.
    """

    def __init__(self, setup: Setup, count: int) -> None:
        self._setup = setup
        self._rows = setup.probes.block(setup.A, 0, count).T
        before = self._gradients()
        first = images_of(setup.A, self._rows[:1])
        between = self._gradients()
        self._images = torch.cat([first, images_of(setup.A, self._rows[1:])])
        self.price: float = (self._gradients() - between) / (count - 1) if between else 1.0
        self.build: float = max(0.0, between - before - self.price)
        self.across: Tensor = inner(self._rows, self._images).cpu()
        self.forms: Tensor = dots(self._rows, self._images)
        self._energies = norms(self._images).square().cpu()
        empty = torch.zeros(0, count, dtype=self.forms.dtype)
        self._inside, self._inside_images = empty, empty

    def _gradients(self) -> float:
        return self._setup.A.cost()["gradients"] or 0.0

    def rows(self, dimension: int) -> Tensor:
        """Return the probes as they are now, (n, d): of the complement, which has this dimension."""
        return self._setup.probes.fitted_(self._rows.T.clone(), dimension).T

    def plain(self) -> Samples:
        """Return the samples of the whole trace that begin with these."""
        samples = complement_samples(self._setup, lambda _: None, dimension=self._setup.A.d, inside=0.0)
        samples.take(Drawn(self.forms, self._energies))
        return samples

    def deflated(self, space: Krylov) -> Samples:
        """Return the samples of the complement of ``space`` that begin with these.

        The energies of the first ones are those of the space without its last vector, by AV = VT + vβ; they are a
        little too large.
        """
        self._inside = _grown(self._inside, space.remove(self._rows.T))
        self._inside_images = _grown(self._inside_images, space.remove(self._images.T))
        c, b, T = self._inside, self._inside_images, space.restricted
        forms = self.forms - 2 * (c * b).sum(dim=0) + (c * (T @ c)).sum(dim=0)
        energies = norms(self._images).square().cpu() + (b[-1] - T[-1, :-1] @ c[:-1]).square()
        dimension = self._setup.A.d - space.size
        samples = complement_samples(
            self._setup, lambda rows: space.remove(rows.T), dimension=dimension, inside=float(T.trace())
        )
        if self._setup.probes.law == "sphere":
            scale = dimension / norms(self._rows).square().cpu()
            forms, energies = forms * scale, energies * scale
        samples.take(Drawn(forms, energies))
        return samples


def _grown(coefficients: Tensor, more: Tensor) -> Tensor:
    """Add coefficients of what an earlier, smaller basis left over."""
    total = more.clone()
    total[: len(coefficients)] += coefficients
    return total
