"""Photographs in folders: which belong to which split, and their pixels.

Images become squares, whatever their shape. The NSO paper's code scales the shorter side to 224 pixels, after which
images of different shapes cannot be put into one batch; how the paper's numbers came about all the same is not known.
"""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from flatmin.errors import DataError
from flatmin_lab.data.root import file_of, required
from flatmin_lab.data.splits import Split
from flatmin_lab.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PIXELS = 224
AIRCRAFT = "fgvc-aircraft-2013b/data"
CALTECH = "256_ObjectCategories"
INDOOR = "indoor67"
MESSIDOR = "messidor2"

_INDOOR_VALIDATION = 0.1  # 536 of 5,360
_MESSIDOR_HELD = 250 / 1744, 248 / 1744  # test and validation, of the gradable images


@dataclass(frozen=True)
class Listed:
    """Files of images and their classes."""

    paths: tuple[Path, ...]
    targets: tuple[int, ...]

    def chosen(self, indices: Sequence[int]) -> Listed:
        """Those at ``indices``."""
        return Listed(tuple(self.paths[i] for i in indices), tuple(self.targets[i] for i in indices))

    def decoded(self, pixels: int = PIXELS) -> Split:
        """Their pixels (n, 3, pixels, pixels), of type uint8."""
        required("PIL.Image", "Pillow", "decodes these images")
        stack = torch.empty(len(self.paths), 3, pixels, pixels, dtype=torch.uint8)

        def read(i: int) -> None:
            stack[i] = decoded(self.paths[i], pixels, str(self.paths[i]))

        with ThreadPoolExecutor() as threads:  # Pillow decodes without Python's lock
            list(threads.map(read, range(len(self.paths))))
        return Split(stack, torch.tensor(self.targets))


Parts = tuple[Listed, Listed, Listed]
"""Training, validation and test images."""


def decoded(source: Path | IO[bytes], pixels: int, name: str) -> torch.Tensor:
    """The pixels of one encoded image, scaled to a square: (3, pixels, pixels), of type uint8.

    Raises:
        DataError: It is missing or no image; the message calls it ``name``.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            square = image.convert("RGB").resize((pixels, pixels), Image.Resampling.BILINEAR)
    except FileNotFoundError as error:
        raise DataError(f"{name} is missing. Likely cause: its archive was not unpacked whole. Do so again.") from error
    except (OSError, SyntaxError) as error:  # of a broken PNG, Pillow raises a SyntaxError
        raise DataError(f"{name} is no image ({error}). Likely cause: it is damaged. Unpack it again.") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def aircraft(root: Path, seed: int) -> Parts:  # noqa: ARG001
    """FGVC-Aircraft by variant; its splits are its authors', whatever the seed. Its banner of 20 rows is not cut off.

    - Maji et al. Fine-grained visual classification of aircraft. arXiv:1306.5151.
    """
    found = {part: _lines(root, f"{AIRCRAFT}/images_variant_{part}.txt") for part in ("train", "val", "test")}
    rows = {part: [line.partition(" ") for line in lines] for part, lines in found.items()}
    number = _numbers({variant for part in rows.values() for _, _, variant in part})
    folder = root / AIRCRAFT / "images"

    def listed(part: list[tuple[str, str, str]]) -> Listed:
        return Listed(tuple(folder / f"{i}.jpg" for i, _, _ in part), tuple(number[variant] for _, _, variant in part))

    return listed(rows["train"]), listed(rows["val"]), listed(rows["test"])


def caltech256(root: Path, seed: int) -> Parts:
    """Caltech-256 without its clutter: of each class 30, 20 and 20 images, the test images the same for every seed.

    - Griffin, Holub, Perona (2007). Caltech-256 object category dataset.
    """
    folder = root / CALTECH
    classes = sorted(path for path in folder.glob("[0-9][0-9][0-9].*") if path.is_dir() and "clutter" not in path.name)
    if not classes:
        raise DataError(
            f"{folder} holds no folders such as 001.ak47. Likely cause: {root} is not the data root, or "
            "256_ObjectCategories.tar was not unpacked there."
        )
    parts: list[list[tuple[Path, int]]] = [[], [], []]
    for label, category in enumerate(classes):
        images = sorted(category.glob("*.jpg"))
        if len(images) < 70:
            raise DataError(
                f"{category} holds {len(images)} images, and 70 are needed. Likely cause: the archive was not unpacked "
                "whole. Do so again."
            )
        test, rest = _held(len(images), 20, 0, f"caltech256: {category.name}: test split")
        validation, train = _held(len(rest), 20, seed, f"caltech256: {category.name}: splits")
        own = [rest[i] for i in train[:30]], [rest[i] for i in validation], test
        for part, chosen in zip(parts, own, strict=True):
            part.extend((images[i], label) for i in chosen)
    train_part, validation_part, test_part = (Listed(*zip(*part, strict=True)) for part in parts)
    return train_part, validation_part, test_part


def indoor67(root: Path, seed: int) -> Parts:
    """MIT Indoor-67; of its authors' training images the seed draws a tenth for validation.

    - Quattoni and Torralba (2009). Recognizing indoor scenes. CVPR.
    """
    train, test = (_lines(root, f"{INDOOR}/{part}Images.txt") for part in ("Train", "Test"))
    number = _numbers({line.partition("/")[0] for line in (*train, *test)})

    def listed(lines: list[str]) -> Listed:
        paths = tuple(root / INDOOR / "Images" / line for line in lines)
        return Listed(paths, tuple(number[line.partition("/")[0]] for line in lines))

    rest = listed(train)
    held, kept = _held(len(train), round(_INDOOR_VALIDATION * len(train)), seed, "indoor67: splits")
    return rest.chosen(kept), rest.chosen(held), listed(test)


def messidor2(root: Path, seed: int) -> Parts:
    """Messidor-2, graded for diabetic retinopathy from 0 to 4; the 1,744 images that could be graded.

    The NSO paper cites RFMiD, which has 46 diseases and no five classes; its code reads Messidor-2. Its printed splits
    add up to 1,894 images, more than there are. Here 250 are held out as test, the same for every seed, 248 for
    validation, and the others are trained on.

    - Decencière et al. (2014). Feedback on a publicly distributed image database: the Messidor database.
    - Krause et al. (2018). Grader variability and the importance of reference standards (the grades).
    """
    name = f"{MESSIDOR}/messidor_data.csv"
    rows = list(csv.DictReader(_lines(root, name)))
    needed = ("image_id", "adjudicated_dr_grade", "adjudicated_gradable")
    missing = [column for column in needed if not rows or rows[0].get(column) is None]
    if missing:
        raise DataError(
            f"{root / name} has no column {missing[0]}. Likely cause: it holds other grades. Take those of "
            "https://www.kaggle.com/datasets/google-brain/messidor2-dr-grades"
        )
    folder = root / MESSIDOR / "images"
    files = {path.name.lower(): path for path in folder.glob("*")}  # .JPG there, .jpg in the table
    graded = [row for row in rows if row["adjudicated_gradable"] == "1"]
    listed = Listed(
        tuple(files.get(row["image_id"].lower(), folder / row["image_id"]) for row in graded),
        tuple(int(row["adjudicated_dr_grade"]) for row in graded),
    )
    for_test, for_validation = (round(share * len(graded)) for share in _MESSIDOR_HELD)
    test, rest = _held(len(graded), for_test, 0, "messidor2: test split")
    validation, train = _held(len(rest), for_validation, seed, "messidor2: splits")
    return listed.chosen([rest[i] for i in train]), listed.chosen([rest[i] for i in validation]), listed.chosen(test)


def _held(count: int, held: int, seed: int, purpose: str) -> tuple[list[int], list[int]]:
    """Draw ``held`` of the numbers below ``count``; return them and the others."""
    order: list[Any] = torch.randperm(count, generator=generator(seed, purpose)).tolist()
    return order[:held], order[held:]


def _lines(root: Path, name: str) -> list[str]:
    lines = file_of(root, name).read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _numbers(classes: set[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(sorted(classes))}
