r"""Plain probes, and the columns of the identity, which are all that few dimensions need.

- Girard, A. (1989). A fast Monte-Carlo cross-validation procedure for large least squares problems with noisy data.
- Hutchinson, M. (1990). A stochastic estimator of the trace of the influence matrix. Communications in Statistics.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from flatmin.curvature.trace.sampling import Drawn, Samples

if TYPE_CHECKING:
    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.setup import Setup


def hutchinson(setup: Setup, *, method: str = "hutchinson", reason: str = "") -> TraceEstimate:
    r"""Return the mean of z'Az over probes z.

    .. math:: \operatorname{tr} A = \mathbb E[z^\top A z] \approx \frac1n \sum_j z_j^\top A z_j

    Unbiased for any square A, since :math:`\mathbb E[zz^\top] = I`. See :meth:`Probes.variance` for its variance.
    """
    A, probes = setup.A, setup.probes
    samples = Samples(
        lambda start, stop: Drawn(A.forms(probes.block(A, start, stop)).cpu()),
        partial(probes.variance, dimension=A.d),
        offset=setup.known,
        offset_stderr=setup.known_stderr,
        guarded=False,
    )
    converged = samples.run(setup.goal, most=setup.left, width=setup.width)
    return setup.estimate(samples, converged=converged, method=method, reason=reason)


def all_columns(setup: Setup) -> TraceEstimate:
    """Return the sum of the diagonal, by one product a dimension."""
    A, total = setup.A, setup.known
    for start in range(0, A.d, setup.width):
        block = torch.zeros(A.d, min(setup.width, A.d - start), dtype=A.dtype, device=A.device)
        block[start:].fill_diagonal_(1.0)
        total += float(A.forms(block).sum())
    reason = f"{A.d} products are all that {A.d} dimensions take"
    return setup.estimate(total, method="all columns", reason=reason)
