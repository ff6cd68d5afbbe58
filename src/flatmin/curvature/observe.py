"""Observers are invisible: what a measurement touches, it puts back."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatmin.perturb.observation import measuring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

Mode = Literal["eval", "current"]
"""``"eval"``: every module in evaluation mode. ``"current"``: every module as it stands, batch-norm and dropout too."""


@contextmanager
def observing(
    model: nn.Module, *, mode: Mode = "eval", differentiable: bool = False, once: bool = False
) -> Iterator[None]:
    """Hold still what evaluating ``model`` may move: the modes of all submodules and all buffers.

    Modes are set by their flag and not by ``train()``, which some modules take as a command to change their weights.

    Args:
        model: The model.
        mode: What the modules do meanwhile.
        differentiable: Record a graph that can be differentiated twice. This calls for the math kernel of
            ``scaled_dot_product_attention`` and for the original of what ``torch.compile`` made, since fused kernels
            and compiled graphs have one derivative only.
        once: One derivative will do, so that kernels and compiled graphs may stay.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [_Buffer(module, name) for module in modules for name in module._buffers]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(differentiable))
        stack.enter_context(measuring())
        # Autocast's copies of weights may stem from where no graph is recorded, and would have none.
        torch.clear_autocast_cache()
        stack.callback(torch.clear_autocast_cache)
        if differentiable and not once:
            stack.enter_context(_TWICE)
        try:
            if mode == "eval":
                for module in modules:
                    module.training = False
            yield
        finally:
            for module, training in zip(modules, modes, strict=True):
                module.training = training
            for buffer in buffers:
                buffer.restore()


class _Shared:
    """A context that concerns all threads: the first to come in opens it, and the last to leave closes it.

    Threads that entered and left by themselves would put back, in the wrong order, what they found.

    Args:
        opened: Returns the open context.
    """

    def __init__(self, opened: Callable[[], ExitStack]) -> None:
        self._opened, self._lock, self._inside = opened, Lock(), 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stack = self._opened()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


def _second_derivatives() -> ExitStack:
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    if "torch._dynamo" in sys.modules:  # else nothing is compiled
        stack.enter_context(torch.compiler.set_stance("force_eager"))
    return stack


_TWICE = _Shared(_second_derivatives)


class _Buffer:
    """One buffer as it was: which tensor stood there, and what it held."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name
        self._tensor: Tensor | None = module._buffers[name]
        self._held = None if self._tensor is None else self._tensor.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        self._module._buffers[self._name] = self._tensor
        if self._tensor is not None and self._held is not None:
            # .data: graphs that are kept use the buffer, and need not be told that it was written the same numbers.
            self._tensor.data.copy_(self._held)
