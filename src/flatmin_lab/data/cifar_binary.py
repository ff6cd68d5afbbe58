"""CIFAR-10 and CIFAR-100 from the archives of their authors in the binary layout, which holds bytes and no pickles.

- Krizhevsky, A. (2009). Learning multiple layers of features from tiny images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from flatmin.errors import DataError
from flatmin_lab.data.root import file_of
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.data.tars import contents
from flatmin_lab.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PIXELS = 32
_VALIDATION_SHARE = 0.1  # 5,000 of 50,000


@dataclass(frozen=True)
class Layout:
    """Where the records lie: bytes of labels, the last being the class, then 32 x 32 pixels of red, green and blue.

    Attributes:
        archive: A file under the data root.
        train: Its files of images to train on, in order.
        test: Its file of test images.
        labels: Bytes of labels before the pixels.
        pickled: Names of what holds the same images as pickles.
    """

    archive: str
    train: tuple[str, ...]
    test: str
    labels: int
    pickled: tuple[str, ...]


CIFAR10 = Layout(
    "cifar-10-binary.tar.gz",
    tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    "cifar-10-batches-bin/test_batch.bin",
    labels=1,
    pickled=("cifar-10-python.tar.gz", "cifar-10-batches-py"),
)
CIFAR100 = Layout(
    "cifar-100-binary.tar.gz",
    ("cifar-100-binary/train.bin",),
    "cifar-100-binary/test.bin",
    labels=2,  # one of twenty groups of classes, then the class
    pickled=("cifar-100-python.tar.gz", "cifar-100-python"),
)


def cifar(layout: Layout, root: Path, seed: int) -> Splits:
    """Read all images.

    Args:
        layout: `CIFAR10` or `CIFAR100`.
        root: Folder of the archive.
        seed: Draws a tenth of the images to train on for validation; the test images are the authors'.

    Returns:
        Images (n, 3, 32, 32) of type uint8, and their classes.

    Raises:
        DataError: The archive is missing or damaged, or holds something else.
    """
    found = _files(layout, root)
    rest = _records(layout, [found[name] for name in layout.train])
    order = torch.randperm(len(rest), generator=generator(seed, f"{layout.archive}: splits"))
    held = round(_VALIDATION_SHARE * len(rest))
    return Splits(train=rest[order[held:]], validation=rest[order[:held]], test=_records(layout, [found[layout.test]]))


def _files(layout: Layout, root: Path) -> dict[str, bytes]:
    pickled = next((name for name in layout.pickled if (root / name).exists()), None)
    if pickled is not None and not (root / layout.archive).is_file():
        raise DataError(
            f"{root / pickled} holds pickles, which can execute anything and are not read here. Put the binary version "
            f"of the same images beside it, {layout.archive} from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    path = file_of(root, layout.archive)
    wanted = {*layout.train, layout.test}
    found = {name: content for name, content in contents(path) if name in wanted}
    missing = sorted(wanted - found.keys())
    if missing:
        raise DataError(f"{path} holds no {missing[0]}. Likely cause: it is another archive. Name another --data-root.")
    return found


def _records(layout: Layout, files: Iterable[bytes]) -> Split:
    """The images of several files, one after another."""
    content, size = np.frombuffer(b"".join(files), np.uint8), layout.labels + 3 * PIXELS**2
    if not content.size or content.size % size:
        raise DataError(
            f"{layout.archive} holds {content.size} bytes where records of {size} bytes are expected. Likely cause: it "
            "was made by another program. Take it from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    rows = torch.from_numpy(content.reshape(-1, size).copy())
    return Split(rows[:, layout.labels :].reshape(-1, 3, PIXELS, PIXELS), rows[:, layout.labels - 1].to(torch.int64))
