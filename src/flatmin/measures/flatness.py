r"""Whether a point is a flat minimum, by the definitions of the theory.

Ahn, Jadbabaie, Sra. *How to Escape Sharp Minima with Random Perturbations*. arXiv:2305.15659, Definitions 1 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatmin.checks import positive
from flatmin.measures.dormand_prince import Function
from flatmin.measures.flow_arguments import check_point, check_scalar
from flatmin.measures.flow_limit import gradient_flow_limit

_CHUNK = 64  # columns of the Hessian that are differentiated together


@dataclass(frozen=True, kw_only=True, eq=False)
class Flatness:
    """Whether a point is an (ε, ε′)-flat minimum, and everything that was looked at; true if it is.

    Attributes:
        is_flat: The verdict: the point is close to its limit, the limit a minimum, and the trace stationary there.
        is_close: ‖x − Φ(x)‖ ≤ ε.
        is_minimum: No eigenvalue of the Hessian at Φ(x) is below zero, by more than a millionth of the largest
            magnitude. Second order does not see further: at the top of −x⁴ it is true.
        is_stationary: ‖∇[tr̄(Φ(x))]‖ ≤ ε′.
        eps: ε.
        eps_prime: ε′.
        gradient_norm: ‖∇f(x)‖.
        excess: f(x) − f(Φ(x)).
        distance: ‖x − Φ(x)‖.
        distance_error: Estimated error of Φ(x).
        normalized_trace: tr̄(Φ(x)), the mean eigenvalue of the Hessian.
        trace_gradient_norm: ‖∇[tr̄(Φ(x))]‖.
        smallest_eigenvalue: Of the Hessian at Φ(x).
        largest_eigenvalue: The same.
        num_tangents: Dimension of the set of minima at Φ(x).
        limit: Φ(x), of the shape of x.
        trace_gradient: ∇[tr̄(Φ(x))] = ∂Φ(x)ᵀ∇tr̄(Φ(x)), of the shape of x.
    """

    is_flat: bool
    is_close: bool
    is_minimum: bool
    is_stationary: bool
    eps: float
    eps_prime: float
    gradient_norm: float
    excess: float
    distance: float
    distance_error: float
    normalized_trace: float
    trace_gradient_norm: float
    smallest_eigenvalue: float
    largest_eigenvalue: float
    num_tangents: int
    limit: Tensor = field(repr=False)
    trace_gradient: Tensor = field(repr=False)

    def __bool__(self) -> bool:
        return self.is_flat


def is_flat(
    f: Function,
    x: Tensor,
    eps: float,
    eps_prime: float,
    *,
    trace: Function | None = None,
    rtol: float = 1e-9,
    max_steps: int = 10_000,
) -> Flatness:
    r"""Tell whether a point is an (ε, ε′)-flat minimum.

    .. math:: \|x - \Phi(x)\| \le \varepsilon, \qquad
        \big\|\nabla[\overline{\operatorname{tr}}(\Phi(x))]\big\|
        = \big\|\partial\Phi(x)^\top\nabla\overline{\operatorname{tr}}(\Phi(x))\big\| \le \varepsilon'

    Ahn, Jadbabaie, Sra, arXiv:2305.15659, Definition 3, with Φ the limit of the gradient flow and tr̄ the trace of the
    Hessian divided by the dimension. Closeness is that of the points: the paper's text leaves open what is close.
    That of the values follows from it where f is smooth. Both are reported, and the gradient.

    Nothing is estimated by random draws. The Hessian is dense: for problems of up to some thousand dimensions.

    Args:
        f: Maps a tensor like ``x`` to a scalar; three times differentiable by ``torch.func``.
        x: The point, in float64; any shape.
        eps: ε, in the units of x.
        eps_prime: ε′; the paper takes √ε.
        trace: The trace of the Hessian of f, differentiable, where it has a closed form; else that of autograd.
        rtol: Accuracy of the limit.
        max_steps: See :func:`gradient_flow_limit`.

    Returns:
        What was found; true as a condition if the point is flat.

    Raises:
        ArgumentError: A value that cannot work, or the flow does not converge.
        ArgumentTypeError: An argument of the wrong kind, or a function that does not give a scalar.
        NonFiniteError: A gradient is not finite.

    Example:
        >>> f = lambda x: (x[0] * x[1] - 1) ** 2                                    # Example 1 of the paper
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)        # two minima
        >>> [bool(is_flat(f, point, eps=0.01, eps_prime=0.1)) for point in x]
        [True, False]
    """
    check_point(x)
    positive("eps", eps, hint="It is the distance to the set of minima that is allowed.")
    positive("eps_prime", eps_prime, hint="It is the slope of the trace that is allowed.")
    if trace is not None:
        check_scalar("trace", trace, x)
    limit = gradient_flow_limit(f, x, rtol=rtol, max_steps=max_steps)
    slope, total = _derived(trace, limit.point) if trace is not None else _trace_gradient(f, limit.point)
    pulled = limit.pullback(slope / x.numel())
    gradient, here = _derived(f, x)
    normal, distance, steepness = limit.normal, float((x - limit.point).norm()), float(pulled.norm())
    is_minimum = bool((normal.is_null | (normal.values > 0)).all())
    return Flatness(
        is_flat=distance <= eps and is_minimum and steepness <= eps_prime,
        is_close=distance <= eps,
        is_minimum=is_minimum,
        is_stationary=steepness <= eps_prime,
        eps=float(eps),
        eps_prime=float(eps_prime),
        gradient_norm=float(gradient.norm()),
        excess=float(here - f(limit.point)),
        distance=distance,
        distance_error=limit.error,
        normalized_trace=float(total) / x.numel(),
        trace_gradient_norm=steepness,
        smallest_eigenvalue=float(normal.values[0]),
        largest_eigenvalue=float(normal.values[-1]),
        num_tangents=int(normal.is_null.sum()),
        limit=limit.point,
        trace_gradient=pulled,
    )


def _derived(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradient and value."""
    gradient, value = torch.func.grad_and_value(f)(x)
    return gradient, value


def _trace_gradient(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of tr ∇²f at ``x`` and the trace itself, some columns of the Hessian at a time."""

    def part(y: Tensor, basis: Tensor) -> Tensor:
        def entry(e: Tensor) -> Tensor:
            return (torch.func.jvp(torch.func.grad(f), (y,), (e,))[1] * e).sum()

        return torch.func.vmap(entry)(basis).sum()

    identity = torch.eye(x.numel(), dtype=x.dtype, device=x.device).view(-1, *x.shape)
    parts = [_derived(lambda y, basis=basis: part(y, basis), x) for basis in identity.split(_CHUNK)]
    gradients, values = zip(*parts, strict=True)
    return torch.stack(gradients).sum(0), torch.stack(values).sum()
