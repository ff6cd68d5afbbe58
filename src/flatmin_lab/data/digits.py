"""Small tasks from scikit-learn's digits: 1797 real scans of handwritten digits, 8 x 8 pixels, shipped in its wheel.

- Alpaydin and Kaynak. Cascading Classifiers. Kybernetika 34 (1998). The UCI set "Optical Recognition of
  Handwritten Digits", whose test part this is.

The 797 test images are the same for every seed, so that no choice made with any seed's validation images has seen
one of them. From the other 1000, the seed draws training and validation images and the labels that are spoilt.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.seeds import generator

NUM_CLASSES = 10
NUM_TEST = 797
NUM_VALIDATION = 500

# Grey values reach from 0 to 16; these round constants bring them near mean 0 and variance 1 and are fitted on nothing.
_MEAN, _SCALE = 5.0, 6.0


def digits_clean(seed: int) -> Splits:
    """200 training images with their true labels.

    Args:
        seed: Chooses training and validation images.

    Returns:
        200 training, 500 validation and 797 test images as rows of 64 standardised pixels.

    Example:
        >>> splits = digits_clean(seed=0)
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (200, 500, 797)
    """
    return _draw(seed, num_train=200, noisy_share=0.0)


def digits_noisy(seed: int) -> Splits:
    """300 training images, 30 % of which carry a label drawn at random from all ten (so 27 % are wrong on average).

    Args:
        seed: Chooses training and validation images, the spoilt labels and what they become.

    Returns:
        300 training, 500 validation and 797 test images; validation and test labels are clean.
    """
    return _draw(seed, num_train=300, noisy_share=0.3)


def digits_all() -> tuple[Split, Split]:
    """Everything there is: 1,000 images to train on and the 797 test images of every seed.

    Example:
        >>> [len(split) for split in digits_all()]
        [1000, 797]
    """
    inputs, targets = _scans()
    test, rest = _parts(len(targets))
    return Split(inputs[rest], targets[rest]), Split(inputs[test], targets[test])


def _parts(count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the test images and of the others."""
    order = torch.randperm(count, generator=generator(0, "digits: test split"))
    return order[:NUM_TEST], order[NUM_TEST:]


def _draw(seed: int, *, num_train: int, noisy_share: float) -> Splits:
    inputs, targets = _scans()
    test, rest = _parts(len(targets))
    drawn = rest[torch.randperm(len(rest), generator=generator(seed, "digits: splits"))]
    # Validation from the far end: the training images of the small task are among those of the large one.
    train, validation = drawn[:num_train], drawn[-NUM_VALIDATION:]
    labels = _spoil(targets[train], round(noisy_share * num_train), seed)
    return Splits(
        train=Split(inputs[train], labels),
        validation=Split(inputs[validation], targets[validation]),
        test=Split(inputs[test], targets[test]),
    )


def _spoil(targets: Tensor, count: int, seed: int) -> Tensor:
    source = generator(seed, "digits: label noise")
    chosen = torch.randperm(len(targets), generator=source)[:count]
    labels = targets.clone()
    labels[chosen] = torch.randint(NUM_CLASSES, (count,), generator=source)
    return labels


@functools.cache
def _scans() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    inputs = (torch.as_tensor(pixels, dtype=torch.float32) - _MEAN) / _SCALE
    return inputs, torch.as_tensor(targets, dtype=torch.int64)
