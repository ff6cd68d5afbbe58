"""Forward mode: dual numbers in the place of a model's parameters."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any

from torch.autograd import forward_ad

from flatmin.curvature.graph import nodes_behind
from flatmin.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

_ALONE = RLock()  # torch has one level of dual numbers for all threads


@contextmanager
def dual_parameters(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], vector: Sequence[Tensor]
) -> Iterator[list[Tensor]]:
    """Let ``model`` compute with dual numbers W + ε v inside this context; yield them, in the order of ``parameters``.

    They stand wherever a module of ``model`` holds the parameter itself; the parameters are not written to.
    """
    with _ALONE, forward_ad.dual_level():
        values = [p.detach().requires_grad_() for p in parameters.values()]
        duals = [forward_ad.make_dual(value, tangent) for value, tangent in zip(values, vector, strict=True)]
        by_id = {id(p): dual for p, dual in zip(parameters.values(), duals, strict=True)}
        found = [(m, dict(m._parameters), getattr(m, "_flat_weights", None)) for m in model.modules()]
        try:
            for module, own, flat in found:
                replaced: dict[str, Any] = {name: by_id.get(id(p), p) for name, p in own.items()}
                module._parameters.update(replaced)
                if flat is not None:  # recurrent layers keep a list of their own
                    module.__dict__["_flat_weights"] = [by_id.get(id(p), p) for p in flat]
            yield duals
        finally:
            for module, own, flat in found:
                module._parameters.update(own)
                if flat is not None:
                    module.__dict__["_flat_weights"] = flat


def tangents(values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the tangents of dual numbers, None (zero) where there is none."""
    return [None if value is None else forward_ad.unpack_dual(value).tangent for value in values]


def check_all_dual(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise ArgumentError if ``loss`` depends on a parameter that dual numbers did not replace."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    for node in nodes_behind([loss]):
        if (name := names.get(id(getattr(node, "variable", None)))) is not None:
            raise ArgumentError(
                f"the model uses parameter {name!r} by a reference of its own and not through the module that holds "
                "it, so that dual numbers cannot take its place. Pass route='reverse'."
            )


def without_tangents() -> AbstractContextManager[Any]:
    """Return the context in which derivatives of dual numbers are those of their values alone."""
    return forward_ad._set_fwd_grad_enabled(mode=False)
