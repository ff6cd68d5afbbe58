"""Scanned digits, which come with scikit-learn, and perceptrons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatmin_lab.tasks.task import Measuring, Setting, Task

if TYPE_CHECKING:
    from torch import nn

    from flatmin_lab.data.splits import Splits


def _clean(seed: int) -> Splits:
    from flatmin_lab.data.digits import digits_clean

    return digits_clean(seed)


def _noisy(seed: int) -> Splits:
    from flatmin_lab.data.digits import digits_noisy

    return digits_noisy(seed)


def _mlp() -> nn.Module:
    from flatmin_lab.models.mlp import mlp

    return mlp()


def _small_mlp() -> nn.Module:
    from flatmin_lab.models.mlp import mlp

    return mlp((64, 32, 10))


_SETTING = Setting(learning_rate=0.02, momentum=0.9, batch_size=25)
_TINY = Measuring(points=4, authors_layers="linear", surface=False)

DIGITS = (
    Task("digits-clean", "200 scanned digits", _clean, _mlp, _SETTING),
    Task("digits-noisy", "300 scanned digits, 30 % with a random label", _noisy, _mlp, _SETTING),
    Task(
        "digits-tiny",
        "200 scanned digits, a network of one hidden layer, in seconds",
        _clean,
        _small_mlp,
        _SETTING,
        measuring=_TINY,
    ),
    Task(
        "digits-tiny-along",
        "200 scanned digits, a small network, with curvature, gap and test loss at every point, in seconds",
        _clean,
        _small_mlp,
        _SETTING,
        measuring=Measuring(points=4, surface=False, along=0.01),
    ),
)
