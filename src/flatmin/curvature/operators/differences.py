"""The Hessian by central differences of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatmin.checks import positive
from flatmin.curvature.operators.hessian import Hessian
from flatmin.curvature.operators.steps import Differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

    from flatmin.curvature.data import LossFunction
    from flatmin.curvature.observe import Mode
    from flatmin.curvature.operators.routes import Route
    from flatmin.curvature.risk import EmpiricalRisk


class FiniteDifferenceHessian(Hessian):
    r"""The Hessian of the mean loss by central differences of gradients: for any model that trains.

    .. math:: H v \approx \frac{\nabla f(W + h v) - \nabla f(W - h v)}{2 h}

    First derivatives are all it takes, so that fused attention, compiled graphs and sparse embeddings do as they are. A
    product costs two gradients and keeps no graph; weights are displaced and put back bitwise, batch by batch. The step
    is found at the first product from the data (:class:`~flatmin.curvature.operators.steps.Differences`), and
    ``.error``, also told in ``.route``, is by how much, relatively, neighbouring steps disagree there.

    **On networks with kinks** (ReLU, max-pooling) this is not what autodiff returns. The gradient of a piecewise smooth
    function jumps where a unit switches on or off; a difference sees the jumps that lie between W - hv and W + hv, and
    a derivative at W sees none of them. The difference is the curvature that a displacement of that length meets, often
    larger by a factor; neither is wrong, but they must not be mixed. ``.route`` names the kinks that were found. What a
    model hides from derivatives by ``detach()`` moves with the weights as well.

    See :class:`~flatmin.curvature.operators.RiskOperator` for the other arguments and attributes.

    Args:
        model: The model, or a function of (parameters, inputs).
        loss_fn: ``loss_fn(model(inputs), targets)``, or ``loss_fn(output, batch)`` for mappings.
        batches: A ``DataLoader``, a list, or another re-iterable.
        mode: ``"eval"`` or ``"current"``.
        parameters: Where to measure, by name, for a model that is a function.
        step: Length of the displacement ‖hv‖, in units of the weights; None chooses it.

    Raises:
        ArgumentError: ``step`` is not above zero.
        ArgumentTypeError: Parameters have 16 bits, in whose rounding small steps are lost.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> data = [(torch.tensor([[1.0, 2.0]]).double(), torch.zeros(1, 1).double())]
        >>> H = FiniteDifferenceHessian(model, torch.nn.functional.mse_loss, data)
        >>> (H @ torch.eye(2).double()).round(decimals=6)          # 2 x xᵀ
        tensor([[2., 4.],
                [4., 8.]], dtype=torch.float64)
        >>> H.error < 1e-8
        True
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        mode: Mode = "eval",
        parameters: Mapping[str, Tensor] | None = None,
        step: float | None = None,
    ) -> None:
        if step is not None:
            step = positive("step", step, hint="It is the length of the displacement, in units of the weights.")
        super().__init__(model, loss_fn, batches, mode=mode, parameters=parameters, route="differences")
        self._differences = Differences(self.risk, self._difference, step)

    def _set_up(self, risk: EmpiricalRisk, memory: int | None, route: Route = "differences") -> None:  # noqa: ARG002
        super()._set_up(risk, memory, "differences")

    @property
    def step(self) -> float | None:
        """Length of the displacement; None before the first product, if it was not given."""
        return None if self._differences is None else self._differences.step
