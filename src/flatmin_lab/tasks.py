"""The registry of tasks: data, network and the one published training setting that every method gets.

Importing this file loads neither torch nor data, so that the command line can name the tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from flatmin_lab.data.splits import Splits

VERSION = 1
"""Raised whenever a task's data, network or setting changes: stored runs of another version cannot be continued."""


@dataclass(frozen=True)
class Setting:
    """The base optimizer, equal for all methods: SGD with momentum, its learning rate falling to zero as a cosine."""

    learning_rate: float
    momentum: float
    batch_size: int


@dataclass(frozen=True)
class Task:
    """Something to train on.

    Attributes:
        name: As on the command line.
        summary: One line for people.
        load: Splits as a function of the seed alone.
        network: A freshly initialised network, drawn from torch's global generator.
        setting: How the base optimizer is set.
    """

    name: str
    summary: str
    load: Callable[[int], Splits]
    network: Callable[[], nn.Module]
    setting: Setting


def task(name: str) -> Task:
    """Look up a task by its name.

    Args:
        name: One of `TASKS`.

    Returns:
        The task.

    Raises:
        ArgumentError: No task has this name; the message lists those there are and the nearest one.
    """
    from flatmin.checks import choice

    return TASKS[choice("task", name, TASKS)]


def _digits_clean(seed: int) -> Splits:
    from flatmin_lab.data.digits import digits_clean

    return digits_clean(seed)


def _digits_noisy(seed: int) -> Splits:
    from flatmin_lab.data.digits import digits_noisy

    return digits_noisy(seed)


def _mlp() -> nn.Module:
    from flatmin_lab.models.mlp import mlp

    return mlp()


_DIGITS = Setting(learning_rate=0.02, momentum=0.9, batch_size=25)

TASKS: dict[str, Task] = {
    t.name: t
    for t in (
        Task("digits-clean", "200 scanned digits", _digits_clean, _mlp, _DIGITS),
        Task("digits-noisy", "300 scanned digits, 30 % with a random label", _digits_noisy, _mlp, _DIGITS),
    )
}
