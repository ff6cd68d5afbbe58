"""The call: what is checked, and which way is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from flatmin.checks import choice, positive, whole
from flatmin.curvature.counted import Counted
from flatmin.curvature.draws import block_width
from flatmin.curvature.trace.automatic import automatic
from flatmin.curvature.trace.control import control
from flatmin.curvature.trace.deflated import deflated
from flatmin.curvature.trace.forward import forward
from flatmin.curvature.trace.hutchinson import hutchinson
from flatmin.curvature.trace.plan import LEAST
from flatmin.curvature.trace.probes import Law, Probes
from flatmin.curvature.trace.sampling import Goal
from flatmin.curvature.trace.setup import Setup
from flatmin.curvature.trace.sketched import hutchpp
from flatmin.curvature.trace.xtrace import xtrace
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatmin.curvature.operators import LinearOperator
    from flatmin.curvature.results import TraceEstimate

Method = Literal["auto", "hutchinson", "hutch++", "xtrace", "deflated", "control", "forward"]

_METHODS: dict[str, Callable[[Setup], TraceEstimate]] = {
    "auto": automatic,
    "hutchinson": hutchinson,
    "hutch++": hutchpp,
    "xtrace": xtrace,
    "deflated": deflated,
    "control": control,
    "forward": forward,
}
_FIXED_BUDGET, _TOLERANCE_BUDGET = 100, 10_000


def trace(
    operator: LinearOperator,
    num_matvecs: int | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    method: Method = "auto",
    probes: Law = "rademacher",
    k: int = 0,
    rank: int | None = None,
    seed: int = 0,
    block_size: int | None = None,
) -> TraceEstimate:
    r"""Estimate the trace, with a standard error, at the least cost that can be found.

    ``method`` is one of

    - ``"auto"``: the cheapest, judged by the network and by a few products that are kept; the rule is that of
      :func:`~flatmin.curvature.trace.automatic.automatic`, and ``reason`` in the result says what decided.
    - ``"hutchinson"``: the mean of z'Az over probes (Girard 1989, Hutchinson 1990). Error as 1/√n.
    - ``"hutch++"``: a sketch of the range first (Meyer et al. 2021). Error as 1/n where the spectrum decays.
    - ``"xtrace"``: every product serves as sketch and as probe (Epperly, Tropp and Webber 2024). Likewise.
    - ``"deflated"``: a Krylov space first, whose Ritz pairs are the top eigenvalues as well. The best where a few
      eigenvalues stand out, as those of Hessians do.
    - ``"control"``: of a :class:`Hessian`, the Gauss-Newton part from gradients, and probes for the rest. Without error
      for networks that are piecewise linear in each parameter.
    - ``"forward"``: of a :class:`Hessian`, plain probes by forward passes alone.

    All are unbiased, ``"forward"`` up to the error of its differences, and all but Hutchinson and Hutch++ ask for a
    symmetric operator. From fewer than six products (four for sketches), and from as many as dimensions, follow plain
    probes and the trace itself, whatever the method; ``method`` in the result says so.

    With ``rtol`` or ``atol`` probes are added until stderr ≤ max(``atol``, ``rtol`` · \|value\|) is certain enough:
    see :class:`~flatmin.curvature.trace.sampling.Samples` for the rule. (The change of the running mean from one probe
    to the next, by which some codes stop, says nothing about the error.)

    Where one or two eigenvalues dominate, plain z'Az are skewed, and intervals from fewer than some 30 probes hold the
    truth less often than they say: with eigenvalues 20, 5, 2 and 27 of 0.1, a 95 % interval does so in 88 % of cases at
    20 probes, in 94 % at 100.

    Args:
        operator: Anything with ``shape`` (d, d), ``dtype``, ``device`` and ``@``.
        num_matvecs: Products to spend, at least 2; with a tolerance, the most that may be spent. Where gradients or
            forward passes take the place of products, they may cost as much as these products would, in gradients; with
            ``"control"`` it bounds the products with H - G alone. Default: 100, or 10,000 with a tolerance.
        rtol: Standard error to reach, relative to the trace.
        atol: Standard error to reach, in units of the trace.
        method: As above.
        probes: ``"rademacher"`` (independent signs: the least variance among laws with independent coordinates),
            ``"gaussian"`` or ``"sphere"``; see :meth:`~flatmin.curvature.trace.probes.Probes.variance`.
        k: Eigenvalues of largest magnitude to find on the way, to 10⁻³, for ``"auto"`` and ``"deflated"``.
        rank: Dimension of the sketch (``"hutch++"``) or of the Krylov space (``"deflated"``). Default: as it pays.
        seed: Seed of the probes, which depend on nothing else.
        block_size: Probes multiplied at once; more cost less time and 3 vectors of d coordinates each. Default: 16, or
            what fits into 2²⁶ numbers.

    Returns:
        The estimate and how it came about. Its samples, shape (n,), are those whose mean it is, in the order of the
        probes, each with the part added that was not sampled; without any, the trace is exact. ``converged`` is False
        if the budget ended before the tolerance was met. ``eigenvalues`` are the k, or those a Krylov space has found.

    Raises:
        ArgumentError: The operator is not square, or not symmetric where it must be, or another argument is out of
            range.
        ArgumentTypeError: The operator is none, or none that the method works for; another argument is no number.
        NonFiniteError: A product is not finite.

    Example:
        >>> import torch
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> estimate = trace(A, num_matvecs=400, method="hutchinson")
        >>> abs(estimate.value - 5.0) < 3 * estimate.stderr
        True
        >>> trace(torch.eye(3), rtol=0.01)
        TraceEstimate(3 ± 0, 3 matvecs)
        >>> outliers = torch.diag(torch.tensor([50.0, 30.0] + 198 * [0.1])) + 0.01
        >>> trace(outliers, rtol=0.01, k=2).eigenvalues.values.round()
        tensor([50., 30.], dtype=torch.float64)
    """
    A = Counted(operator)
    goal = _goal(num_matvecs, rtol, atol)
    run = _METHODS[choice("method", method, get_args(Method))]
    choice("probes", probes, get_args(Law))
    whole("seed", seed, minimum=0, hint="It is the seed of the probes.")
    width = block_width(A.d) if block_size is None else block_size
    whole("block_size", width, minimum=1, hint="It is the number of probes that are multiplied at once.")
    _check_k(whole("k", k, minimum=0, hint="It is the number of eigenvalues to find on the way."), goal.budget, method)
    if rank is not None:
        whole("rank", rank, minimum=1, hint="It is the dimension of the space whose part of the trace is exact.")
    setup = Setup(A, Probes(probes, seed), goal, width, rank, k)
    with A.session():
        return run(setup)


def _check_k(k: int, budget: int, method: str) -> None:
    if k and method not in ("auto", "deflated"):
        raise ArgumentError(
            f"k is {k}, but method {method!r} finds no eigenvalues. Use 'auto' or 'deflated', or call top_eigenvalues."
        )
    if k and budget < k + LEAST:
        raise ArgumentError(
            f"num_matvecs is {budget}, but {k} eigenvalues and the trace take at least {k + LEAST} products."
        )


def _goal(num_matvecs: int | None, rtol: float | None, atol: float | None) -> Goal:
    asked = rtol is not None or atol is not None
    default = _TOLERANCE_BUDGET if asked else _FIXED_BUDGET
    budget = default if num_matvecs is None else num_matvecs
    whole("num_matvecs", budget, minimum=2, hint="It counts products; one alone has no standard error.")
    hint = "It is the standard error to reach; leave it out to spend num_matvecs."
    return Goal(
        budget,
        0.0 if rtol is None else positive("rtol", rtol, hint=hint),
        0.0 if atol is None else positive("atol", atol, hint=hint),
    )
