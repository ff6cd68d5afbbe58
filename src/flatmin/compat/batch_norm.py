"""Running statistics of batch-norm, switched off and on without losing anything."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_PAUSED = "_statistics_are_paused"
"""An attribute of the module, so that copies and pickles of a model can be switched on again."""


def disable_running_stats(model: nn.Module) -> None:
    """Have batch-norm normalise by the batch and leave its running statistics and their count alone.

    Calling it twice is calling it once, and it holds whatever the momentum is, None (a cumulative average) included: no
    momentum is touched. Evaluation mode goes on to use the statistics. :class:`SAM` does not need it.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> model = torch.nn.BatchNorm1d(2)
        >>> disable_running_stats(model)
        >>> _ = model(torch.ones(4, 2))
        >>> enable_running_stats(model)
        >>> model.num_batches_tracked
        tensor(0)
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.track_running_stats, module.__dict__[_PAUSED] = False, True


def enable_running_stats(model: nn.Module) -> None:
    """Undo :func:`disable_running_stats`; modules that it has not touched are left alone.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> enable_running_stats(torch.nn.BatchNorm1d(2, track_running_stats=False))
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.__dict__.pop(_PAUSED, False):
            module.track_running_stats = True
