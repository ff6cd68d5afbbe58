"""CIFAR-10 as JPEG of quality 75: not the original pixels, so figures of it are not figures of CIFAR-10.

- Krizhevsky, A. (2009). Learning multiple layers of features from tiny images.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flatmin_lab.data.arrays import arrays
from flatmin_lab.data.root import data_root, file_of, required
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE = "cifar10_jpeg75.npz"
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 2000, 1000, 2000

# Those that published CIFAR networks were trained with; ImageNet's.
_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
_SCALE = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def cifar10_jpeg75(root: Path, choose: Callable[[int], torch.Tensor], *, test: bool) -> Split:
    """Read some of the images.

    Args:
        root: Folder of `FILE`, in which image i is the JPEG ``header + blob[offsets[i]:offsets[i + 1]]``.
        choose: Given the number of images of the split, the indices of those wanted.
        test: Whether from the 10,000 test images, or from the 50,000 training images.

    Returns:
        Standardised images (n, 3, 32, 32) and their classes.

    Raises:
        DataError: The file is missing or is another one.
        ModuleNotFoundError: Pillow is not installed.
    """
    Image = required("PIL.Image", "Pillow", "decodes these images")
    path = file_of(root, FILE)
    offsets, labels, header, blob, is_test = arrays(path, "offsets", "labels", "header", "blob", "is_test")
    split = np.flatnonzero(is_test == test)
    chosen = split[choose(len(split)).numpy()]
    pixels = np.stack([_decoded(Image, header, blob[offsets[i] : offsets[i + 1]]) for i in chosen])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255
    return Split((images - _MEAN) / _SCALE, torch.from_numpy(labels[chosen].astype(np.int64)))


@functools.lru_cache(maxsize=1)  # a run asks for them twice, to train and to measure
def drawn_splits(seed: int) -> Splits:
    """Draw a small task from the images under the data root that the environment names.

    Args:
        seed: Chooses 2,000 training and 1,000 validation images among the training images. The 2,000 test images are
            the same for every seed, so that no choice made with any seed's validation images has seen one of them.

    Raises:
        DataError: The file is missing or is another one.
        MissingPackageError: Pillow is not installed.
    """
    root = data_root(None)

    def draw(seed: int, purpose: str, count: int) -> Callable[[int], torch.Tensor]:
        return lambda available: torch.randperm(available, generator=generator(seed, purpose))[:count]

    drawn = cifar10_jpeg75(root, draw(seed, "cifar10-jpeg75: splits", NUM_TRAIN + NUM_VALIDATION), test=False)
    train = min(NUM_TRAIN, len(drawn) * 2 // 3)  # of a file with fewer images, as in tests
    return Splits(
        train=Split(drawn.inputs[:train], drawn.targets[:train]),
        validation=Split(drawn.inputs[train:], drawn.targets[train:]),
        test=cifar10_jpeg75(root, draw(0, "cifar10-jpeg75: test split", NUM_TEST), test=True),
    )


def _decoded(Image: Any, header: np.ndarray, body: np.ndarray) -> np.ndarray:
    with Image.open(io.BytesIO(header.tobytes() + body.tobytes())) as image:
        return np.asarray(image.convert("RGB"))
