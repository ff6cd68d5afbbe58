"""Where recipes take training and test data from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from flatmin_lab.data.splits import Split

Source = Callable[["Path | None"], "tuple[Split, Split]"]
"""Given the data root, training and test data."""


def digits(root: Path | None) -> tuple[Split, Split]:
    """1,000 and 797 scanned digits of scikit-learn, which are always there."""
    del root
    from flatmin_lab.data.digits import digits_all

    return digits_all()


def mnist(root: Path | None) -> tuple[Split, Split]:
    """60,000 and 10,000 digits under the data root."""
    return _images(root, "mnist")


def fashion(root: Path | None) -> tuple[Split, Split]:
    """60,000 and 10,000 pieces of clothing under the data root."""
    return _images(root, "fashion")


def _images(root: Path | None, name: str) -> tuple[Split, Split]:
    from flatmin_lab.data.mnist import mnist as load
    from flatmin_lab.data.root import data_root

    folder = data_root(root)
    return load(folder, name, test=False), load(folder, name, test=True)
