"""Hooks on a model and on an optimizer: they keep nothing alive for too long, and stay behind when a model is copied.

Each calls a method, by name.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from flatmin.optim.attachment.micro_batches import MicroBatches
    from flatmin.optim.attachment.smoother import Smoother


class ModelHook:
    """A hook on a module: it keeps its smoother alive, and copies and pickles of it do nothing.

    A copy of a model (an average of weights, a saved module) would otherwise displace the weights of the original.
    """

    __slots__ = ("_method", "_smoother")

    def __init__(self, smoother: Smoother | None = None, method: str = "") -> None:
        self._smoother, self._method = smoother, method

    @torch._disable_dynamo  # which is torch.compiler.disable, but imports the compiler at the first call only
    def __call__(self, *arguments: Any) -> Any:
        """Tell the smoother."""
        return None if self._smoother is None else getattr(self._smoother, self._method)(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelHook:
        if self._smoother is not None:
            self._smoother.before_copy(memo)
        return ModelHook()

    def __reduce__(self) -> tuple[type[ModelHook], tuple[()]]:
        if self._smoother is not None:
            self._smoother.before_look()
        return ModelHook, ()


class _OptimizerHook:
    """A hook on an optimizer, which those that it tells hold: so this one does not keep them alive."""

    def __init__(self, told: Smoother | MicroBatches, method: str) -> None:
        self._told, self._method = weakref.ref(told), method

    @torch._disable_dynamo
    def __call__(self, *arguments: Any) -> Any:
        """Tell, if it is still there."""
        told = self._told()
        return None if told is None else getattr(told, self._method)(*arguments)


def hang_up(
    smoother: Smoother, model: nn.Module, optimizer: Optimizer, micro_batches: MicroBatches
) -> list[RemovableHandle]:
    """Tell ``smoother`` of what happens to ``model`` and ``optimizer``; the model keeps it alive."""
    look = ModelHook(smoother, "before_look")
    handles = [
        # First of all, since FSDP gathers its shards in a hook of its own.
        model.register_forward_pre_hook(ModelHook(smoother, "before_forward"), prepend=True),
        model.register_forward_hook(ModelHook(smoother, "after_forward"), always_call=True),
        optimizer.register_step_pre_hook(_OptimizerHook(smoother, "before_step")),
        optimizer.register_step_post_hook(_OptimizerHook(smoother, "after_step")),
        optimizer.register_load_state_dict_pre_hook(_OptimizerHook(smoother, "before_look")),
        optimizer.register_load_state_dict_pre_hook(_OptimizerHook(micro_batches, "before_loading")),
        optimizer.register_load_state_dict_post_hook(_OptimizerHook(micro_batches, "after_loading")),
        optimizer.register_state_dict_post_hook(_OptimizerHook(micro_batches, "after_saving")),
    ]
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks in Python
            handles.append(module.register_state_dict_pre_hook(look))
            handles.append(module.register_load_state_dict_pre_hook(look))
    return handles
