"""What is orthogonal to a space whose part of the trace is known, seen by probes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.basis import Basis, inner, norms
from flatmin.curvature.trace.sampling import Drawn, Samples
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from flatmin.curvature.counted import Counted
    from flatmin.curvature.trace.setup import Setup

    Remove = Callable[[Tensor], object]  # projects rows, in place


def complement_samples(setup: Setup, remove: Callable[[Tensor], object], *, dimension: int, inside: float) -> Samples:
    r"""Return samples of :math:`\operatorname{tr} A = \operatorname{tr} V^\top AV + \mathbb E[z^\top PAP z]`.

    P = I - VV' is the projection onto the complement of a space that knows nothing of the probes z.

    Args:
        setup: The operator and the probes.
        remove: Projects rows (n, d), in place, onto the complement.
        dimension: That of the complement.
        inside: tr V'AV.
    """
    A, probes = setup.A, setup.probes

    def draw(start: int, stop: int) -> Drawn:
        rows = probes.block(A, start, stop).T
        remove(rows)
        probes.fitted_(rows.T, dimension)
        images = images_of(A, rows)
        forms = dots(rows, images)
        remove(images)
        return Drawn(forms, norms(images).square().cpu())

    variance = partial(probes.variance, dimension=dimension)
    return Samples(draw, variance, offset=setup.known + inside, offset_stderr=setup.known_stderr)


def images_of(A: Counted, rows: Tensor) -> Tensor:
    """Return the products with ``rows`` (n, d) as rows, new and contiguous."""
    return A.products(rows.T).T.to(rows.dtype, copy=True).contiguous()


def dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of each row with its like, summed in float64, on the CPU."""
    return torch.sum(left * right, dim=1, dtype=accumulation_dtype(left.device)).cpu()


def new_basis(A: Counted) -> Basis:
    """Return an empty basis for vectors of ``A``."""
    return Basis(A.d, torch.promote_types(A.dtype, torch.float32), A.device)


def extend(basis: Basis, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Take what ``rows`` (n, d), which are overwritten, add to the span into the basis; rounding errors add nothing.

    Returns:
        The rows that were added, (m, d), and the coefficients of ``rows`` in the basis as it is then, (len(basis), n).
    """
    scale = float(norms(rows).max())
    before = basis.remove(rows)
    Q, R = torch.linalg.qr(rows.T)
    new = Q[:, R.diagonal().abs() > 10 * torch.finfo(basis.dtype).eps * scale].T.contiguous()
    if len(basis) and len(new):  # what is left of long vectors is long in rounding errors
        basis.remove(new)
        new = torch.linalg.qr(new.T)[0].T.contiguous()
    after = inner(new, rows).cpu()
    basis.append(new)
    return new, torch.cat([before, after])
