"""What several evaluations in one step do to a model's buffers, batch-norm statistics above all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

BufferPolicy = Literal["first", "all", "frozen"]
BUFFER_POLICIES: tuple[str, ...] = get_args(BufferPolicy)


class Buffers:
    """Lets a step move buffers as often as the policy says, by copying them back after the other evaluations.

    In training mode batch-norm normalises by the batch, so its running statistics do not enter the gradient, and
    putting them back afterwards is exact. No module is switched, no momentum is touched, and every class with state in
    buffers is covered (batch-norm of any kind, spectral norm, vector quantisation, ...). Constant integer and boolean
    buffers (position ids, causal masks) are passed over.

    Args:
        policy: ``"first"``: buffers move in the first evaluation of a step alone, as in plain training. ``"all"``: they
            move in every one. ``"frozen"``: they do not move.
        modules: The modules whose buffers are meant; those in evaluation mode have none that move.
    """

    def __init__(self, policy: str, modules: Iterable[nn.Module]) -> None:
        modules = () if policy == "all" else modules
        self._slots = [
            (module, name)
            for module in modules
            if module.training
            for name, b in module._buffers.items()
            if b is not None and (b.is_floating_point() or b.is_complex() or b.dim() == 0)
        ]
        self._kept: list[Tensor] | None = None
        if policy == "frozen":
            self._keep()

    def _live(self) -> list[Tensor]:
        # Looked up anew each time: a forward pass may put another tensor in a buffer's place.
        return [buffer for module, name in self._slots if (buffer := module._buffers[name]) is not None]

    def _keep(self) -> None:
        self._kept = [buffer.detach().clone() for buffer in self._live()]

    @torch.no_grad()
    def after_evaluation(self) -> None:
        """Put the buffers where the policy wants them after one more evaluation."""
        if self._kept is None:
            self._keep()
        elif self._kept:
            torch._foreach_copy_(self._live(), self._kept)
