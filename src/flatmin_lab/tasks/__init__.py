"""The registry of tasks: data, network and the one training setting that every method gets.

Importing it loads neither torch nor data, so that the command line can name the tasks at once.
"""

from __future__ import annotations

from flatmin_lab.tasks.digits import DIGITS
from flatmin_lab.tasks.images import IMAGES
from flatmin_lab.tasks.pairs import PAIRS
from flatmin_lab.tasks.task import Measuring, Setting, Task
from flatmin_lab.tasks.texts import TEXTS

__all__ = ["MAIN", "TASKS", "VERSION", "Measuring", "Setting", "Task", "task"]

VERSION = 1
"""Raised whenever a task's data, network or setting changes: stored runs of another version cannot be continued."""

TASKS: dict[str, Task] = {t.name: t for t in (*DIGITS, *IMAGES, *PAIRS, *TEXTS)}

MAIN = ("digits-clean", "digits-noisy")
"""Those that are compared on if nothing else is said."""


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
