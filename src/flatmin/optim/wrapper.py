"""An optimizer around an optimizer: what is the base's stays the base's, so that nothing can come apart."""

# torch has attributes where this class has properties:
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import inspect
import weakref
from typing import Any

from torch.optim import Optimizer

from flatmin.errors import ArgumentError, ArgumentTypeError

ATTACHED = weakref.WeakSet[Any]()
"""The attachments (:func:`flatmin.attach`) that displace weights; each has the ``optimizer`` whose weights they are."""


class Wrapper(Optimizer):
    """An ``Optimizer`` whose ``param_groups``, ``state`` and ``defaults`` *are* those of its base.

    They are looked up each time, since loading a checkpoint gives the base new ones. Learning-rate schedulers attach to
    either object. Hooks of :meth:`step` are the wrapper's own; those of ``state_dict`` belong to the base, whose it is.

    Args:
        base: The optimizer that makes the step.
    """

    _kept: tuple[str, ...] = ("base",)
    """Attributes that pickles and copies carry; a subclass adds its own."""

    def __init__(self, base: Optimizer) -> None:
        # Optimizer.__init__ would make groups and a state of its own; __setstate__ makes the rest, its hooks.
        self.base: Optimizer = require_base(base, type(self).__name__)
        self.__setstate__({})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the base."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The state of the base."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the base."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base."""
        self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the base does."""
        self.base.zero_grad(set_to_none)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register on the base."""
        return self.base.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register on the base."""
        return self.base.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register on the base."""
        return self.base.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> Any:
        """Register on the base."""
        return self.base.register_load_state_dict_post_hook(hook, prepend)

    def __getstate__(self) -> dict[str, Any]:
        # Nothing but what is named: learning-rate schedulers put a step of their own into an optimizer's __dict__, and
        # a copy that carried it would step the original.
        return {name: self.__dict__[name] for name in self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._base_needs_closure = needs_closure(self.base)
        super().__setstate__({})


def require_base(base: Any, name: str) -> Optimizer:
    """Return ``base`` if it is an optimizer that ``name`` can be put around, or say what to pass."""
    example = f"{name}(torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), ...)"
    if isinstance(base, type) and issubclass(base, Optimizer):
        raise ArgumentTypeError(f"base is the class {base.__name__}; pass an instance of it: {example}.")
    if type(base).__module__.startswith("deepspeed"):
        raise ArgumentTypeError(
            f"base is a {type(base).__name__} of DeepSpeed, which steps inside engine.backward() and keeps the weights "
            f"that are trained: {name} cannot displace them. Train with FSDP2 (torch.distributed.fsdp.fully_shard)."
        )
    if type(base).__name__ == "CPUOffloadOptimizer":
        raise ArgumentTypeError(
            "base is a CPUOffloadOptimizer, which copies each gradient away during backward, before the points of a "
            f"step are combined. Put {name} around a plain optimizer, or take flatmin.attach, which needs one backward "
            "pass a micro-batch (and offload_gradients=False)."
        )
    if not isinstance(base, Optimizer):
        raise ArgumentTypeError(
            f"base is a {type(base).__name__}, which is no torch.optim.Optimizer. {name} goes around the optimizer "
            f"that makes the step: {example}."
        )
    if isinstance(base, Wrapper):
        raise ArgumentError(
            f"base is a {type(base).__name__}, which displaces the weights itself. Two methods cannot displace the "
            f"same weights; put {name} around the plain optimizer: {name}(opt.base, ...)."
        )
    if any(attachment.optimizer is base and attachment.model is not None for attachment in ATTACHED):
        raise ArgumentError(
            f"base is a {type(base).__name__} whose weights an attachment displaces already (flatmin.attach). Call "
            f"remove() on its handle before {name} goes around it."
        )
    return base


def needs_closure(base: Optimizer) -> bool:
    """Tell whether ``base`` cannot step without a closure (LBFGS)."""
    closure = inspect.signature(base.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
