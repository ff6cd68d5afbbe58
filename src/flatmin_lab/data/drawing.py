"""Training and validation examples drawn by a seed from those that are not test examples."""

from __future__ import annotations

import torch

from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.seeds import generator


def drawn(name: str, seed: int, rest: Split, test: Split, *, num_train: int | None, num_validation: int) -> Splits:
    """Draw them; the test examples are the same for every seed.

    Args:
        name: Of the data set.
        seed: Chooses the examples.
        rest: Those that are not for the test.
        test: Those for the test.
        num_train: Examples to train on; None for all that are not for validation.
        num_validation: Examples for validation; fewer examples to train on are among more, so they come first.

    Example:
        >>> numbers = Split(torch.arange(9), torch.arange(9))
        >>> few, many = (drawn("numbers", 0, numbers, numbers[:2], num_train=n, num_validation=3) for n in (2, None))
        >>> len(many.train), bool((few.train.targets == many.train.targets[:2]).all())
        (6, True)
    """
    order = torch.randperm(len(rest), generator=generator(seed, f"{name}: splits"))
    train = order[num_validation:][:num_train]
    return Splits(train=rest[train], validation=rest[order[:num_validation]], test=test)
