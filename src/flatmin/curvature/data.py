"""Data to measure on: batches that can be read again and again, and what a model and a loss make of one.

A batch is a pair ``(inputs, targets)``, whose loss is ``loss_fn(model(inputs), targets)``, or a mapping, whose loss is
``loss_fn(model(**inputs), batch)``, ``inputs`` being the entries that ``model.forward`` has arguments for. In a pair,
``inputs`` may be a tuple, which goes in as ``model(*inputs)``, or a mapping, as ``model(**inputs)``. Tensors are moved
to the device of the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flatmin.errors import ArgumentTypeError, DataError

LossFunction = Callable[[Any, Any], Tensor]
"""``loss_fn(output, targets)``, or for a mapping ``loss_fn(output, batch)``: the mean over the batch's examples."""

_T = TypeVar("_T")
_FORMS = "A batch is a pair (inputs, targets), or a mapping whose entries the model takes by name."


def reiterable(batches: Iterable[_T]) -> Iterable[_T]:
    """Return ``batches`` if it can be read more than once.

    Raises:
        ArgumentTypeError: It is a generator or another iterator, a single batch, or nothing one can iterate over.
    """
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or (
        isinstance(batches, tuple) and any(isinstance(item, Tensor) for item in batches)
    ):
        kind = type(batches).__name__
        raise ArgumentTypeError(
            f"batches is one {kind}, which looks like a single batch. {_FORMS} For one batch only, put it into a list: "
            "[(inputs, targets)]."
        )
    if isinstance(batches, Iterator):
        raise ArgumentTypeError(
            f"batches is a {type(batches).__name__}, which can be read only once, but every product reads all data "
            "again. Pass list(batches) or a DataLoader."
        )
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise ArgumentTypeError(
            f"batches is {batches!r}, which is nothing to iterate over. Pass a DataLoader or a list. {_FORMS}"
        )
    return batches


def generators_of(batches: object) -> list[torch.Generator]:
    """Return the random generators that reading a ``DataLoader`` advances, other than the global one; each once."""
    if not isinstance(batches, DataLoader):
        return []
    owners = (batches, batches.sampler, getattr(batches.batch_sampler, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def moved(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor inside tuples, lists and mappings on ``device``; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(item, device) for item in value)
    return value


def prepared(item: Any, index: int, device: torch.device) -> Any:
    """Return the ``index``-th item of the data as a pair or a dict on ``device``.

    Raises:
        DataError: It is neither a pair nor a mapping.
    """
    if isinstance(item, Mapping):
        return moved(item, device)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return moved(tuple(item), device)
    raise DataError(
        f"batch {index} is {describe(item)}, but a pair (inputs, targets) or a mapping is needed. Several inputs go "
        "into a mapping with the names of the model's arguments."
    )


def describe(item: object) -> str:
    """Say what ``item`` is, for a message."""
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)} items"
    if isinstance(item, Tensor):
        return f"a tensor of shape {tuple(item.shape)}"
    return f"a {type(item).__name__}"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of ``torch.compile`` and ``DistributedDataParallel``.

    A compiled module has no second derivative, and a distributed one reduces what is not to be reduced.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def compiled(model: nn.Module) -> nn.Module | None:
    """Return the compiled module that ``model`` is or wraps, for forward passes; None if there is none."""
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    inner = getattr(model, "_orig_mod", None)
    return None if inner is None or unwrapped(inner) is not inner else model


class Functional(nn.Module):
    """A function of (parameters, inputs) as a module, so that it is measured like one.

    Args:
        function: ``function(parameters, inputs)``, ``parameters`` being a dict of named tensors.
        parameters: Where to measure. The module's parameters share the memory of these tensors.

    Example:
        >>> model = Functional(lambda p, x: x @ p["w"], {"w": torch.ones(2, 1)})
        >>> model(torch.ones(1, 2))
        tensor([[2.]], grad_fn=<MmBackward0>)
    """

    def __init__(self, function: Callable[..., Any], parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._function = function
        for name, tensor in parameters.items():  # not register_parameter, which takes no dots in a name
            self._parameters[name] = nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the function makes of the parameters and ``inputs``."""
        return self._function(dict(self._parameters), *inputs, **named)


def as_module(model: nn.Module | Callable[..., Any], parameters: Mapping[str, Tensor] | None) -> nn.Module:
    """Return ``model``, a function of (parameters, inputs) as a module.

    Raises:
        ArgumentTypeError: It is neither, or parameters are given for a module or missing for a function.
    """
    if parameters is not None and not isinstance(model, nn.Module) and callable(model):
        model = Functional(model, parameters)
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(
            f"model is {model!r}, but a torch.nn.Module is needed, or a function of (parameters, inputs) together "
            "with parameters={name: tensor}."
        )
    if parameters is not None and not isinstance(model, Functional):
        raise ArgumentTypeError(
            f"parameters were given, but the model is a {type(model).__name__}, whose own parameters are measured. "
            "Leave them out, or pass a function of (parameters, inputs) as model."
        )
    return model


class Forward:
    """What a model and a loss make of a batch.

    Args:
        model: The model.
        loss_fn: See :data:`LossFunction`.
        compiled: The same model compiled, which is called where no graph is recorded.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, compiled: nn.Module | None = None) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self._compiled = compiled
        function = model._function if isinstance(model, Functional) else model.forward
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    def output(self, batch: Any) -> Any:
        """Return what the model makes of ``batch``.

        Raises:
            DataError: The model has no argument for any entry of a mapping.
        """
        model = self._model if self._compiled is None or torch.is_grad_enabled() else self._compiled
        if isinstance(batch, Mapping):
            return model(**self._inputs(batch))
        inputs = batch[0]
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)

    def loss(self, output: Any, batch: Any) -> Tensor:
        """Return the loss of ``output``, a 0-dim tensor.

        Raises:
            ArgumentTypeError: ``loss_fn`` returned no tensor, or one with several elements.
        """
        return _scalar(self._loss_fn(output, batch if isinstance(batch, Mapping) else batch[1]))

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs = {key: value for key, value in batch.items() if self._takes_all or key in self._names}
        if not inputs:
            raise DataError(
                f"a batch has the entries {', '.join(map(repr, batch))}, but {type(self._model).__name__}.forward "
                f"takes {', '.join(map(repr, self._names))}: nothing fits. Rename the entries, or pass pairs."
            )
        return inputs


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise ArgumentTypeError(
            f"loss_fn returned {describe(loss)}, but a tensor with one element is needed. A float has lost its graph "
            "(leave out .item()); a model output of transformers holds the loss as output.loss."
        )
    if loss.numel() != 1:
        raise ArgumentTypeError(
            f"loss_fn returned a tensor of shape {tuple(loss.shape)}, but one number is needed, the batch's mean. "
            "Likely cause: reduction='none'. Take .mean()."
        )
    return loss.reshape(()) if loss.dim() else loss  # itself, so that it is known where it is an output
