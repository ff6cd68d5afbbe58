"""Two valleys of any dimension, in which everything has a closed form.

Ahn, Jadbabaie, Sra. *How to Escape Sharp Minima with Random Perturbations*. arXiv:2305.15659, Example 1 and Setting 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flatmin.checks import positive, whole
from flatmin.problems.valley import Valley


class Hyperbolas(Valley):
    r"""Products that must be one: :math:`f = \frac1n\sum_i (\langle u_i, v_i\rangle - 1)^2`, Example 1 for n = m = 1.

    A point is :math:`(u_1, v_1, \dots, u_n, v_n)` with :math:`u_i, v_i \in \mathbb R^m`, so that d = 2nm: n linear
    networks of width m. The trace is :math:`\frac2n\sum_i(\|u_i\|^2 + \|v_i\|^2)`, everywhere. The flow scales
    :math:`u_i + v_i` and :math:`u_i - v_i` by inverse factors, which gives its limit; for m = 1, u² − v² is conserved.
    Minima are flat where all :math:`u_i = v_i`, of norm 1.

    Args:
        num_examples: n.
        width: m.

    Raises:
        ArgumentError: One of them is below 1.
        ArgumentTypeError: One of them is no whole number.

    Example:
        >>> example1 = Hyperbolas()
        >>> x = torch.tensor([2.0, 1.0])
        >>> example1.value(x), example1.trace(x), example1.flat_minima
        (tensor(1.), tensor(10.), tensor([[ 1.,  1.],
                [-1., -1.]]))
        >>> example1.limit(x).square().diff().round(decimals=3)           # x₁² − x₂² as it was
        tensor([-3.])
    """

    def __init__(self, num_examples: int = 1, width: int = 1) -> None:
        n = whole("num_examples", num_examples, minimum=1, hint="It is the number n of products.")
        self.width: int = whole("width", width, minimum=1, hint="It is the number m of terms in a product.")
        super().__init__(2 * n * width, num_examples=n, factor=1.0)

    @property
    def minima(self) -> Tensor:
        """The flat ones, and a sharp one: all u = (2, 0, …), v = (1/2, 0, …)."""
        sharp = torch.zeros(self.num_examples, 2, self.width)
        sharp[:, 0, 0], sharp[:, 1, 0] = 2.0, 0.5
        return torch.cat([self.flat_minima, sharp.view(1, -1)])

    @property
    def flat_minima(self) -> Tensor:
        """All u = v = (1, 0, …), and the opposite."""
        ones = torch.zeros(self.num_examples, 2, self.width)
        ones[..., 0] = 1.0
        return torch.stack([ones.flatten(), -ones.flatten()])

    @property
    def targets(self) -> Tensor:
        """All one."""
        return torch.ones(self.num_examples)

    def _pairs(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and v; shape (*batch, n, m) each."""
        u, v = w.unflatten(-1, (self.num_examples, 2, self.width)).unbind(-2)
        return u, v

    def _joined(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.stack([u, v], -2).flatten(-3)

    def _predictions(self, w: Tensor) -> Tensor:
        u, v = self._pairs(w)
        return (u * v).sum(-1)

    def _gradient(self, w: Tensor) -> Tensor:
        u, v = self._pairs(w)
        slope = 2 / self.num_examples * ((u * v).sum(-1, keepdim=True) - 1)
        return self._joined(slope * v, slope * u)

    def _example_gradient(self, w: Tensor, example: Tensor) -> Tensor:
        u, v = self._pairs(w)
        chosen = torch.nn.functional.one_hot(example, self.num_examples).to(w)[..., None]
        slope = 2 * chosen * ((u * v).sum(-1, keepdim=True) - 1)
        return self._joined(slope * v, slope * u)

    def _hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        (a, b), (da, db) = self._pairs(w), self._pairs(v)
        slope = 2 / self.num_examples * ((a * b).sum(-1, keepdim=True) - 1)
        change = 2 / self.num_examples * (da * b + a * db).sum(-1, keepdim=True)
        return self._joined(change * b + slope * db, change * a + slope * da)

    def _trace(self, w: Tensor) -> Tensor:
        return 2 / self.num_examples * w.square().sum(-1)

    def _limit(self, w: Tensor) -> Tensor:
        # With s = u + v, t = u − v the flow is s√z, t/√z, and ⟨u, v⟩ = (‖s‖²z − ‖t‖²/z) / 4 = 1 is quadratic in z.
        u, v = self._pairs(w)
        s, t = u + v, u - v
        a, b = (x.square().sum(-1, keepdim=True) for x in (s, t))
        # Where u = −v the flow ends in the saddle, s and a being zero.
        scale = (2 + (4 + a * b).sqrt()).sqrt() / a.clamp_min(torch.finfo(a.dtype).tiny).sqrt()
        return self._joined(s * scale + t / scale, s * scale - t / scale) / 2


class CoshValley(Valley):
    r"""A straight valley that opens towards the origin: :math:`f(x, y) = \frac12\cosh^\kappa(x)\,\|y\|^2`.

    A point is :math:`(x, y_1, \dots, y_{d-1})`. It is the mean over n = d − 1 examples
    :math:`p_i = \sqrt{n \cosh^\kappa x}\; y_i`, of target 0. The minima are y = 0, the axis of x, where the trace over
    d is :math:`\frac{d-1}{d}\cosh^\kappa x`: its slope does not vanish as d grows, and f, though not each f_i, is
    smooth uniformly in d. The flow ends at :math:`\sinh x' = e^{-\kappa\|y\|^2/4} \sinh x`. The origin is flat.
    For large x the slope of κ log cosh x is κ: small κ make long valleys of a constant gentle slope.

    Args:
        dim: d, at least 2.
        power: κ.

    Raises:
        ArgumentError: A value that cannot work, by name.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> valley = CoshValley(1000)
        >>> x = torch.zeros(1000); x[0] = 2.0
        >>> valley.trace(x) / 999, valley.trace_gradient(x)[0], valley.trace_gradient(valley.flat_minima[0]).norm()
        (tensor(3.7622), tensor(3.6232), tensor(0.))
    """

    def __init__(self, dim: int, power: float = 1.0) -> None:
        whole("dim", dim, minimum=2, hint="One coordinate lies along the valley, the others across it.")
        self.power: float = positive("power", power, hint="It says how fast the valley narrows.")
        super().__init__(dim, num_examples=dim - 1, factor=0.5)

    @property
    def minima(self) -> Tensor:
        """The flat one, and a sharp one at x = 1."""
        sharp = torch.zeros(1, self.dim)
        sharp[0, 0] = 1.0
        return torch.cat([self.flat_minima, sharp])

    @property
    def flat_minima(self) -> Tensor:
        """The origin."""
        return torch.zeros(1, self.dim)

    @property
    def targets(self) -> Tensor:
        """All zero."""
        return torch.zeros(self.num_examples)

    def _curvature(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return the curvature across the valley and tanh x; shape (*batch, 1) each."""
        x = w[..., :1]
        return torch.cosh(x) ** self.power, torch.tanh(x)

    def _predictions(self, w: Tensor) -> Tensor:
        return (self.num_examples * self._curvature(w)[0]).sqrt() * w[..., 1:]

    def _gradient(self, w: Tensor) -> Tensor:
        y, (h, tanh) = w[..., 1:], self._curvature(w)
        return torch.cat([self.power / 2 * h * tanh * y.square().sum(-1, keepdim=True), h * y], -1)

    def _example_gradient(self, w: Tensor, example: Tensor) -> Tensor:
        (h, tanh), i = self._curvature(w), example[..., None]
        y, n = w[..., 1:].gather(-1, i), self.num_examples
        return torch.zeros_like(w).scatter(-1, i + 1, n * h * y) + torch.nn.functional.pad(
            self.power / 2 * n * h * tanh * y.square(), (0, self.dim - 1)
        )

    def _hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        y, dx, dy, (h, tanh) = w[..., 1:], v[..., :1], v[..., 1:], self._curvature(w)
        first = self.power * h * tanh
        second = self._second(h, tanh)
        along = second / 2 * y.square().sum(-1, keepdim=True) * dx + first * (y * dy).sum(-1, keepdim=True)
        return torch.cat([along, first * dx * y + h * dy], -1)

    def _second(self, h: Tensor, tanh: Tensor) -> Tensor:
        """Return the second derivative of the curvature along the valley."""
        return self.power * h * (1 + (self.power - 1) * tanh.square())

    def _trace(self, w: Tensor) -> Tensor:
        h, tanh = self._curvature(w)
        across = w[..., 1:].square().sum(-1, keepdim=True)
        return (self._second(h, tanh) / 2 * across + self.num_examples * h).squeeze(-1)

    def _limit(self, w: Tensor) -> Tensor:
        # ẋ = −h′q and q̇ = −2hq for q = ‖y‖²/2, so that d ln sinh x = κ/2 dq.
        q = w[..., 1:].square().sum(-1, keepdim=True) / 2
        x = torch.asinh(torch.sinh(w[..., :1]) * torch.exp(-self.power / 2 * q))
        return torch.nn.functional.pad(x, (0, self.dim - 1))
