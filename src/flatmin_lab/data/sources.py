"""The six image data sets of the NSO paper: what must lie under the data root, and their splits.

Images are kept as bytes and standardised by the network (:class:`~flatmin_lab.models.pixels.Pixels`): at 224 pixels,
those of one split are a gigabyte so, and four as numbers of 32 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatmin.checks import choice
from flatmin_lab.data import folders
from flatmin_lab.data.cifar_binary import CIFAR10, CIFAR100, Layout, cifar
from flatmin_lab.data.splits import Splits

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ImageSource:
    """A data set of images with classes.

    Attributes:
        name: As in `SOURCES`.
        summary: One line for people.
        files: What must lie under the data root, and where it is to be had.
        licence: As its authors say.
        num_classes: Of its classes.
        printed: Images to train on, to validate and to test with, as the NSO paper prints them.
        pixels: Height and width of the images as they are kept; networks scale them to 224.
        read: The splits as a function of data root and seed.
        note: How the splits differ from those printed; empty where they do not.
    """

    name: str
    summary: str
    files: Mapping[str, str]
    licence: str
    num_classes: int
    printed: tuple[int, int, int]
    pixels: int
    read: Callable[[Path, int], Splits]
    note: str = ""

    def load(self, root: Path, seed: int) -> Splits:
        """Return the splits of one seed; those of the last call are kept.

        Args:
            root: The data root.
            seed: Chooses training and validation images where the authors of the data did not; never test images.

        Returns:
            Images (n, 3, pixels, pixels) of type uint8, and their classes.

        Raises:
            DataError: Something is missing or damaged.
            MissingPackageError: Pillow is not installed.
        """
        return _load(self.name, root, seed)


@functools.lru_cache(maxsize=1)  # a run asks for them twice, to train and to measure
def _load(name: str, root: Path, seed: int) -> Splits:
    return SOURCES[name].read(root, seed)


def source(name: str) -> ImageSource:
    """Look up a source by its name.

    Raises:
        ArgumentError: No source has this name; the message lists those there are.

    Example:
        >>> source("indoor67").num_classes
        67
    """
    return SOURCES[choice("data source", name, SOURCES)]


def _binary(layout: Layout) -> Callable[[Path, int], Splits]:
    return lambda root, seed: cifar(layout, root, seed)


def _photographs(parts: Callable[[Path, int], folders.Parts]) -> Callable[[Path, int], Splits]:
    return lambda root, seed: Splits(*(part.decoded() for part in parts(root, seed)))


_TORONTO = "from https://www.cs.toronto.edu/~kriz/cifar.html"

SOURCES: dict[str, ImageSource] = {
    s.name: s
    for s in (
        ImageSource(
            "cifar10",
            "CIFAR-10, photographs of ten things",
            {CIFAR10.archive: f"CIFAR-10, binary version, {_TORONTO}"},
            "free with citation (Krizhevsky 2009)",
            10,
            (45000, 5000, 10000),
            32,
            _binary(CIFAR10),
        ),
        ImageSource(
            "cifar100",
            "CIFAR-100, photographs of a hundred things",
            {CIFAR100.archive: f"CIFAR-100, binary version, {_TORONTO}"},
            "free with citation (Krizhevsky 2009)",
            100,
            (45000, 5000, 10000),
            32,
            _binary(CIFAR100),
        ),
        ImageSource(
            "aircraft",
            "FGVC-Aircraft, photographs of a hundred variants of aeroplanes",
            {
                f"{folders.AIRCRAFT}/images_variant_train.txt": "fgvc-aircraft-2013b.tar.gz unpacked, from "
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
            },
            "non-commercial research",
            100,
            (3334, 3333, 3333),
            folders.PIXELS,
            _photographs(folders.aircraft),
        ),
        ImageSource(
            "caltech256",
            "Caltech-256, photographs of 256 things, thirty of each to train on",
            {
                f"{folders.CALTECH}/001.ak47/001_0001.jpg": "256_ObjectCategories.tar unpacked, from "
                "https://data.caltech.edu/records/nyy15-4j048"
            },
            "CC BY 4.0",
            256,
            (7680, 5120, 5120),
            folders.PIXELS,
            _photographs(folders.caltech256),
        ),
        ImageSource(
            "indoor67",
            "MIT Indoor-67, photographs of rooms of 67 kinds",
            {
                f"{folders.INDOOR}/{part}Images.txt": f"MIT Indoor-67: a folder {folders.INDOOR} of Images/, "
                "TrainImages.txt and TestImages.txt, from https://web.mit.edu/torralba/www/indoor.html"
                for part in ("Train", "Test")
            },
            "research use",
            67,
            (4824, 536, 1340),
            folders.PIXELS,
            _photographs(folders.indoor67),
        ),
        ImageSource(
            "retina",
            "Messidor-2, photographs of the retina, graded for diabetic retinopathy from 0 to 4",
            {
                f"{folders.MESSIDOR}/messidor_data.csv": f"a folder {folders.MESSIDOR} of images/, all images of "
                "Messidor-2, to be asked for at https://www.adcis.net/en/third-party/messidor2/, and "
                "messidor_data.csv, their grades, from https://www.kaggle.com/datasets/google-brain/messidor2-dr-grades"
            },
            "research and education, on request",
            5,
            (1396, 248, 250),
            folders.PIXELS,
            _photographs(folders.messidor2),
            note="Messidor-2 has 1,744 images that could be graded, fewer than the 1,894 of the printed splits: 1,246 "
            "are trained on, with validation and test as large as printed.",
        ),
    )
}
"""The data sets by name."""
