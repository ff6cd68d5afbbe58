"""The distance to the start of fine-tuning as a term of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flatmin.checks import nonnegative
from flatmin.distributed import ShardedTotal
from flatmin.regularizers.start import Start, matches, named_parameters, require_patterns, start_in
from flatmin.vectors import Total, Vector


class DistancePenalty:
    r"""L2-SP: half the squared distance of the weights to where fine-tuning started, a term of the loss.

    .. math:: \Omega(w) = \frac\alpha2\,\|w_S - w^0_S\|^2 + \frac\beta2\,\|w_{\bar S}\|^2

    S are the parameters that have a start, the others are new. Li, Grandvalet, Davoine, arXiv:1802.01483. Its gradient
    at w is alpha (w - w⁰), at w + u and w - u together too, so that under two-point noise it is as without noise. Add
    it to every loss, inside the closure or the probe, after the forward pass: ``criterion(model(x), y) + penalty()``.
    Weight decay pulls towards zero besides; for plain L2-SP leave it off.

    Parameters that are frozen are left out while they are. Tied ones count once. The gradient is dense, which the
    sparse optimizers refuse: exclude embeddings with ``sparse=True`` under them. Of sharded parameters each rank adds
    its own shards and all see the whole penalty; the gradient reaches the shards directly, once, without the averaging
    that those of the examples go through, so that it is the same for any number of ranks. (That it is evaluated *after*
    the forward pass matters there: its gradients must be in place before those of the ranks are added.)

    Args:
        model: The model, on its device and in its shards: those parameters are held.
        alpha: Strength towards the start.
        beta: Strength of the pull of new parameters towards zero.
        start: Where fine-tuning started, by name (``state_dict()`` of the pretrained model); parameters that it leaves
            out are new. None: the weights as they are now.
        exclude: Names of parameters to leave out, as patterns: ``"*.bias"``.

    Raises:
        ArgumentError: A value that cannot work, by name; a pattern that matches nothing; a start of another shape.
        ArgumentTypeError: An argument of the wrong kind.

    Example:
        >>> import torch, flatmin as fm
        >>> model, x, y = torch.nn.Linear(3, 2), torch.ones(8, 3), torch.zeros(8, dtype=torch.long)
        >>> penalty = DistancePenalty(model, alpha=0.1)
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.01)
        >>> for probe in opt.probes():
        ...     with probe:
        ...         (torch.nn.functional.cross_entropy(model(x), y) + penalty()).backward()
        >>> opt.step()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        alpha: float,
        beta: float = 0.0,
        start: Mapping[str, Tensor] | None = None,
        exclude: str | Iterable[str] = (),
    ) -> None:
        self._alpha = nonnegative("alpha", alpha, hint="It is the strength of the pull towards the start.")
        self._beta = nonnegative("beta", beta, hint="It is the strength of the pull of new parameters towards zero.")
        parameters = named_parameters(model)
        patterns = [exclude] if isinstance(exclude, str) else list(exclude)
        require_patterns("exclude", patterns, parameters)
        measured = [names for names in parameters if not any(matches(pattern, names) for pattern in patterns)]
        self._start = Start(parameters, measured, start)

    def __call__(self) -> Tensor:
        """Return the penalty, a 0-dim tensor with a graph: of 64 bits for such parameters, of 32 for all others.

        A collective operation where parameters are sharded: every rank calls it.
        """
        names, differences = self._start.trainable(), self._start.differences()
        total = ShardedTotal(dict(enumerate(self._start.parameters.values())))
        penalty = torch.zeros(())
        for strength, is_new in ((self._alpha, False), (self._beta, True)):
            part = {i: d for i, d in differences.items() if (names[i] in self._start.new) == is_new}
            if strength and part:
                penalty = penalty + strength / 2 * _SquaredLength.apply(total, tuple(part), *part.values())  # pyright: ignore[reportOperatorIssue]
        return penalty.to(max((d.dtype for d in differences.values()), key=lambda t: t.itemsize, default=torch.float32))

    def state_dict(self) -> dict[str, Any]:
        """Return the starting weights, so that a resumed run measures from the true start."""
        return {"start": self._start.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Measure from the start in ``state_dict``; the strengths stay.

        Raises:
            ArgumentError: It is the state of something else, or of other parameters.
        """
        self._start.load_state_dict(start_in(state_dict))


class _SquaredLength(torch.autograd.Function):
    """The squared length of a vector over all ranks; each rank's gradient is that of its own part, which enters once.

    Beside the sum over ranks, what is gained over elementary operations is a pass over the weights and a copy of them.
    """

    @staticmethod
    def forward(ctx: Any, total: Total, positions: tuple[int, ...], *tensors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(*tensors)
        return Vector(dict(zip(positions, tensors, strict=True)), total).norm().square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors = Vector(dict(enumerate(ctx.saved_tensors))) * (2 * gradient)
        return None, None, *tensors.tensors.values()
