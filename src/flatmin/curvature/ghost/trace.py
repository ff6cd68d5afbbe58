"""The exact trace of the generalised Gauss-Newton matrix, block by block and example by example."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin.checks import positive, whole
from flatmin.curvature.ghost.passes import Limits
from flatmin.curvature.ghost.run import Run
from flatmin.streams import Stream

if TYPE_CHECKING:
    from flatmin.curvature.ghost.result import GGNTrace
    from flatmin.curvature.operators.risk_operator import RiskOperator


def ggn_trace(
    operator: RiskOperator,
    *,
    max_passes: int = 64,
    max_exact: int | None = None,
    rtol: float = 0.01,
    seed: int = 0,
) -> GGNTrace:
    r"""Return the trace of the GGN, exact wherever ``max_exact`` passes suffice.

    .. math:: \operatorname{tr} G = \frac1N \sum_n \sum_k \pm \lVert J_n^\top s_{nk} \rVert^2,
        \qquad \nabla_z^2 \ell_n = \sum_k \pm s_{nk} s_{nk}^\top

    One backward pass takes the k-th column of all examples at once; it stops at the layers' outputs, and the norms of
    single examples come from those and the layers' inputs (see :mod:`flatmin.curvature.ghost.forms`). Softmax
    cross-entropy of C classes takes C - 1 passes, with label smoothing, class weights or ignored targets as well;
    squared loss one pass an output. Where there are more columns than passes, the heaviest are taken exactly and the
    others sampled with random signs, independently for each example, which is where the standard error comes from.

    Where the network is piecewise linear in each parameter tensor by itself (ReLU, pooling, convolutions, batch-norm in
    evaluation mode, ...), the trace of the Hessian is this one: see ``curved``. What is so is read off the graph of the
    forward pass and tried on two examples.

    Args:
        operator: Any operator on the risk in question; the risk and the budget of memory alone are used.
        max_passes: The most backward passes for one batch.
        max_exact: The most columns that are all taken; with more, the lighter ones are sampled. Default:
            ``max_passes``. On a small language model a sample of N passages took about 0.1 / (N rtol²) passes.
        rtol: Relative standard error at which sampling stops before ``max_passes``.
        seed: Seed of the sample.

    Returns:
        The trace, its blocks, and what it covers. Nothing is covered, and the reason said, where examples cannot be
        told apart.

    Raises:
        ArgumentError: ``max_passes`` is below 4, ``max_exact`` below 0, or ``rtol`` not positive.

    Example:
        >>> import torch
        >>> from flatmin.curvature.operators import GGN
        >>> model = torch.nn.Linear(2, 3)
        >>> batches = [(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([0, 2]))]
        >>> t = ggn_trace(GGN(model, torch.nn.functional.cross_entropy, batches))
        >>> t.exact, t.curved, t.num_matvecs
        (True, (), 2)
        >>> G = GGN(model, torch.nn.functional.cross_entropy, batches) @ torch.eye(9)
        >>> torch.testing.assert_close(t.value, float(G.trace()), rtol=1e-5, atol=0)
    """
    whole("max_passes", max_passes, minimum=4, hint="A head and a sample of two need at least four.")
    if max_exact is not None:
        whole("max_exact", max_exact, minimum=0, hint="It counts the columns that are all taken, not sampled.")
    positive("rtol", rtol, hint="It is the relative standard error at which sampling may stop, such as 0.01.")
    risk = operator.risk
    before = risk.gradients
    exact = max_passes if max_exact is None else min(max_exact, max_passes)
    run = Run(risk, Limits(max_passes, exact), rtol, Stream(seed), operator.memory)
    with risk.observed(differentiable=True):
        risk.check_weights()
        run.read()
    return run.result(before, seed)
