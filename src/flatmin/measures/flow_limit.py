r"""Where the gradient flow ends: the limit Φ(x), and what its derivative does to a gradient.

Ahn, Jadbabaie, Sra. *How to Escape Sharp Minima with Random Perturbations*. arXiv:2305.15659, Definition 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from flatmin.checks import positive, whole
from flatmin.errors import ArgumentError, NonFiniteError
from flatmin.measures.dormand_prince import Function, advanced, difference, stages
from flatmin.measures.flow_arguments import check_point, check_scalar
from flatmin.measures.normal import Normal

# Times the largest eigenvalue: at 3.3 an explicit step is no longer stable, and near that errors across the minima stay
# as large as the tolerance and are never damped.
_DAMPING = 2.0
_LOOK_EVERY = 200  # steps after which the end is looked for in any case
_FARTHEST = 1e100  # no step moves further, so that where nothing curves, lengths and norms stay finite


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowLimit:
    """The end of a gradient flow.

    Attributes:
        point: Φ(x), of the shape of x.
        error: Estimate of the distance to the true limit: the errors of the steps, and what was left to go.
        gradient_norm: ‖∇f‖ at the point.
        num_steps: Accepted steps.
        num_gradients: Gradients that were evaluated.
        time: Of the flow, when it was left.
    """

    point: Tensor
    error: float
    gradient_norm: float
    num_steps: int
    num_gradients: int
    time: float
    _function: Function = field(repr=False)
    _gradient: Function = field(repr=False)
    _path: tuple[tuple[Tensor, float], ...] = field(repr=False)

    @cached_property
    def normal(self) -> Normal:
        """The Hessian at the point, taken apart."""
        return Normal.at(self._function, self.point.flatten())

    def pullback(self, covector: Tensor) -> Tensor:
        r"""Return ∂Φ(x)ᵀ ``covector``: the gradient at x of a function of Φ(x), from that at Φ(x).

        On the set of minima ∂Φ is the orthogonal projector onto its tangent space, the null space of the Hessian. Off
        it every step of the integrator is differentiated, in reverse: exact for the limit that was computed.

        Args:
            covector: Of the shape of x.

        Returns:
            The same shape.

        Raises:
            ArgumentError: The covector is of another shape.

        Example:
            >>> x = torch.tensor([1.0, 1.0], dtype=torch.float64)
            >>> limit = gradient_flow_limit(lambda x: (x[0] * x[1] - 1) ** 2, x)
            >>> limit.pullback(torch.tensor([1.0, 0.0], dtype=torch.float64))       # onto the tangent (1, -1)
            tensor([ 0.5000, -0.5000], dtype=torch.float64)
        """
        if covector.shape != self.point.shape:
            raise ArgumentError(
                f"covector has the shape {tuple(covector.shape)}, but the point {tuple(self.point.shape)}. Pass the "
                "gradient at the limit of a function of one point."
            )
        a = self.normal.tangential(covector.flatten())
        for start, h in reversed(self._path):
            step: Function = lambda x, h=h: advanced(self._gradient, x, h)  # noqa: E731
            a = torch.func.vjp(step, start)[1](a)[0]
        return a.view_as(covector)


def gradient_flow_limit(
    f: Function, x: Tensor, *, rtol: float = 1e-9, atol: float = 1e-12, max_steps: int = 10_000
) -> FlowLimit:
    r"""Follow the gradient flow from a point to its limit.

    .. math:: \Phi(x) = \lim_{t\to\infty} x(t),\qquad \dot x = -\nabla f(x),\quad x(0) = x

    Ahn, Jadbabaie, Sra, arXiv:2305.15659, Definition 1. The steps are those of Dormand and Prince's pair of orders 5
    and 4, with their lengths under control; the flow is left when the Newton step from there to the set of minima is
    below the tolerance. That needs the dense Hessian: meant for problems of up to some thousand dimensions. A flow that
    starts at a point without slope stays there, whether it is a minimum or not.

    Args:
        f: Maps a tensor like ``x`` to a scalar; twice differentiable by ``torch.func``.
        x: Where to start, in float64; any shape.
        rtol: Error allowed in a step and at the end, relative to the norm of x.
        atol: The same, absolute.
        max_steps: Steps after which to give up.

    Returns:
        The limit with its error. What the limit's derivative does to a gradient: :meth:`FlowLimit.pullback`.

    Raises:
        ArgumentError: A value that cannot work, or the flow does not converge.
        ArgumentTypeError: ``x`` is no tensor of float64, or f does not give a scalar.
        NonFiniteError: A gradient is not finite.

    Example:
        >>> x = torch.tensor([2.0, 1.0], dtype=torch.float64)
        >>> gradient_flow_limit(lambda x: (x[0] * x[1] - 1) ** 2, x).point.square().diff()     # x₁² - x₂² is conserved
        tensor([-3.0000], dtype=torch.float64)
    """
    check_point(x)
    positive("rtol", rtol, hint="It is the relative error allowed in a step of the flow.")
    positive("atol", atol, hint="It is the absolute error allowed in a step of the flow.")
    whole("max_steps", max_steps, minimum=1, hint="It is the number of steps after which to give up.")
    check_scalar("f", f, x)
    shape = x.shape
    flat: Function = lambda v: f(v.view(shape))  # noqa: E731
    return _Integration(flat, x.detach().flatten().clone(), rtol, atol).run(max_steps, shape)


class _Integration:
    """A flow on its way.

    Args:
        f: The function of a flat tensor.
        x: Where to start, shape (d,).
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """

    def __init__(self, f: Function, x: Tensor, rtol: float, atol: float) -> None:
        self._f, self._x, self._rtol, self._atol = f, x, rtol, atol
        self._gradient = torch.func.grad(f)
        self._slope = -self._gradient(x)
        self._path: list[tuple[Tensor, float]] = []
        self._error, self._num_gradients = 0.0, 1
        self._left, self._look_below, self._longest = 0.0, math.inf, math.inf

    def run(self, max_steps: int, shape: torch.Size) -> FlowLimit:
        """Step until the end is near enough."""
        h = self._first_step()
        for count in range(max_steps + 1):
            if self._has_ended(is_due=count % _LOOK_EVERY == 0 or count == max_steps):
                return self._limit(shape)
            if count == max_steps or self._size() == 0:  # no slope and no curvature either: nothing moves any more
                break
            h = self._step(h)
        raise ArgumentError(
            f"The flow has not converged after {len(self._path)} steps, at time {self._time:.3g}: ‖∇f‖ is "
            f"{self._size():.3g} and ‖x‖ {float(self._x.norm()):.3g}. Its minimum may lie at infinity, or the problem "
            "is stiff and max_steps too small."
        )

    @property
    def _time(self) -> float:
        return math.fsum(h for _, h in self._path)

    def _size(self) -> float:
        size = float(self._slope.norm())
        if not math.isfinite(size):
            raise NonFiniteError(
                f"The gradient is {size} at ‖x‖ = {float(self._x.norm()):.3g}, {len(self._path)} steps down the flow. "
                "Is f unbounded from below, or not differentiable there?"
            )
        return size

    def _tolerance(self) -> float:
        return self._atol + self._rtol * float(self._x.norm())

    def _first_step(self) -> float:
        """Return a length that the curvature along the slope allows."""
        size = self._size()
        curved = torch.func.jvp(self._gradient, (self._x,), (self._slope,))[1]
        return 0.1 * size / max(float(curved.norm()), 1e-300) if size else 1.0

    def _step(self, h: float) -> float:
        """Take a step of at most ``h``, shortened until its error is allowed; return the length of the next."""
        h = min(h, self._longest, _FARTHEST / self._size())
        while True:
            end, slopes = stages(self._gradient, self._x, h, self._slope)
            last = -self._gradient(end)
            self._num_gradients += len(slopes)
            error = h * float(difference([*slopes, last]).norm())
            ratio = error / self._tolerance()
            factor = 0.9 * max(ratio, 1e-10) ** -0.2 if math.isfinite(ratio) else 0.1
            if ratio <= 1:
                self._path.append((self._x, h))
                self._x, self._slope, self._error = end, last, self._error + error
                return h * min(5.0, factor)
            h *= max(0.1, min(factor, 0.9))
            if torch.equal(self._x + h * self._slope, self._x):
                raise NonFiniteError(
                    f"No step is short enough at ‖x‖ = {float(self._x.norm()):.3g}, where ‖∇f‖ is {self._size():.3g}: "
                    "f is not smooth there, or not defined beyond. Has it a minimum that the flow can reach?"
                )

    def _has_ended(self, *, is_due: bool) -> bool:
        """Tell whether the set of minima is as near as it must be, by a look at the dense Hessian where that may be."""
        size = self._size()
        if not self._path and size == 0:
            return True
        if size > self._look_below and not is_due:
            return False
        normal = Normal.at(self._f, self._x)
        self._left = float(normal.newton(self._slope).norm())
        steepest, allowed = float(normal.values.abs().max()), self._tolerance()
        self._longest = _DAMPING / steepest if steepest else math.inf
        # No sooner can it be so near; the last look tells how much is left along slow directions.
        due = min(steepest * allowed, size * allowed / max(self._left, 1e-300))
        self._look_below = max(due, size / 30)
        return self._left <= allowed and not bool(normal.is_null.all())

    def _limit(self, shape: torch.Size) -> FlowLimit:
        return FlowLimit(
            point=self._x.view(shape),
            error=self._error + self._left,
            gradient_norm=self._size(),
            num_steps=len(self._path),
            num_gradients=self._num_gradients,
            time=self._time,
            _function=self._f,
            _gradient=self._gradient,
            _path=tuple(self._path),
        )
