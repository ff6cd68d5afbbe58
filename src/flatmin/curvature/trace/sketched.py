r"""A sketch of the range of an operator carries most of its trace; the rest is left to probes.

- Meyer, R., Musco, C., Musco, C. and Woodruff, D. (2021). Hutch++: Optimal stochastic trace estimation. SOSA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.curvature.trace.complement import complement_samples, dots, extend, images_of, new_basis
from flatmin.curvature.trace.hutchinson import all_columns, hutchinson
from flatmin.curvature.trace.probes import Probes

if TYPE_CHECKING:
    from flatmin.curvature.results import TraceEstimate
    from flatmin.curvature.trace.setup import Setup

_SKETCH = 1  # path of the vectors a space is made of: probes must know nothing of it
_USUAL = 16  # vectors in a sketch where a tolerance leaves their number open


def hutchpp(setup: Setup) -> TraceEstimate:
    r"""Return tr Q'AQ plus the mean of z'PAPz, with Q an orthonormal basis of A S and P = I - QQ' (Meyer et al. 2021).

    Unbiased for any square A, since Q is independent of the probes z. Of m products a third each goes into A S, A Q
    and the probes, as in the paper; with a tolerance, S has 16 columns and probes are added until it is met.

    Memory: one vector for each column of S, and three more for a short while.
    """
    A, goal = setup.A, setup.goal
    size = setup.rank or (_USUAL if goal.asked else setup.left // 3)
    size = min(size, (setup.left - 2) // 2)
    if A.d <= setup.left and (not goal.asked or A.d <= 2 * size):
        return all_columns(setup)
    if size < 1:
        return hutchinson(setup, reason="fewer than 4 products leave none for a sketch")
    basis = new_basis(A)
    start = Probes(setup.probes.law, setup.probes.seed, (_SKETCH,)).block(A, 0, size).T
    Q, _ = extend(basis, images_of(A, start))
    inside = float(dots(Q, images_of(A, Q)).sum())
    samples = complement_samples(setup, basis.remove, dimension=A.d - len(basis), inside=inside)
    converged = samples.run(goal, most=setup.left, width=setup.width)
    return setup.estimate(samples, converged=converged, method="hutch++")
