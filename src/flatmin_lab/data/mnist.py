"""Digits and clothes of 28 x 28 pixels, read from one file each.

- LeCun et al. Gradient-based learning applied to document recognition (MNIST).
- Xiao, Rasul, Vollgraf. Fashion-MNIST. arXiv:1708.07747.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from flatmin_lab.data.arrays import arrays
from flatmin_lab.data.root import file_of
from flatmin_lab.data.splits import Split

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"mnist": "mnist.npz", "fashion": "fashion.npz"}
_MEAN, _SCALE = 0.1307, 0.3081


def mnist(root: Path, name: str, *, test: bool) -> Split:
    """Read all images of one part.

    Args:
        root: Folder of the files, which hold ``x_train``, ``y_train``, ``x_test`` and ``y_test``.
        name: A key of `FILES`.
        test: Whether the 10,000 test images, or the 60,000 training images.

    Returns:
        Images (n, 1, 28, 28), shifted and scaled by constants, and their classes.

    Raises:
        DataError: The file is missing or is another one.
    """
    part = "test" if test else "train"
    pixels, classes = arrays(file_of(root, FILES[name]), f"x_{part}", f"y_{part}")
    images = torch.from_numpy(pixels).unsqueeze(1).to(torch.float32) / 255
    return Split((images - _MEAN) / _SCALE, torch.from_numpy(classes.astype(np.int64)))
