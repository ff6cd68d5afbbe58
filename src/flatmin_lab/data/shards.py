"""Images with captions in shards: tar archives of KEY.jpg and KEY.txt, as WebDataset has them.

- Sharma et al. (2018). Conceptual captions: a cleaned, hypernymed, image alt-text dataset for automatic image
  captioning (CC3M).

A million images do not fit into memory, so a split keeps where each lies, and decodes those of a batch when asked.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from flatmin.errors import DataError
from flatmin_lab.data.folders import PIXELS, decoded
from flatmin_lab.data.root import required
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.data.tars import positions
from flatmin_lab.data.tokens import Subwords, Tokens
from flatmin_lab.seeds import generator

FOLDER = "cc3m"
FILES = {
    f"{FOLDER}/cc3m-{part}-0000.tar": f"a folder {FOLDER} of shards cc3m-train-*.tar and cc3m-validation-*.tar: hf "
    f"download --repo-type dataset pixparse/cc3m-wds --local-dir ROOT/{FOLDER}"
    for part in ("train", "validation")
}
"""What `conceptual_captions` needs under the data root, beside a tokenizer (`flatmin_lab.data.tokens.TOKENIZERS`)."""

LENGTH = 77
NUM_TRAIN, NUM_VALIDATION = 1_000_000, 2000


@dataclass(frozen=True)
class StoredSplit(Split):
    """Pairs whose images are read and decoded when they are asked for, as bytes (n, 3, pixels, pixels).

    Its inputs are where each image lies (number of the shard, first byte, bytes) and the tokens of its caption. Its
    hash is of these and not of the pixels.

    Attributes:
        shards: The archives.
        pixels: Height and width of the images.
    """

    shards: tuple[Path, ...] = ()
    pixels: int = PIXELS

    def __getitem__(self, chosen: Tensor | slice) -> Split:
        """The examples with these numbers, decoded."""
        places, tokens = self.inputs
        found = places[chosen.to(places.device) if isinstance(chosen, Tensor) else chosen].tolist()
        with ThreadPoolExecutor() as threads:
            images = list(threads.map(self._image, found))
        stacked = torch.stack(images) if images else torch.empty(0, 3, self.pixels, self.pixels, dtype=torch.uint8)
        return Split((stacked.to(tokens.device), tokens[chosen]), self.targets[chosen])

    def to(self, device: torch.device) -> Split:
        """Return the same examples, on ``device`` once they are decoded."""
        places, tokens = self.inputs
        return replace(self, inputs=(places, tokens.to(device)), targets=self.targets.to(device))

    def _image(self, place: list[int]) -> Tensor:
        shard, begin, size = place
        path = self.shards[shard]
        with path.open("rb") as file:
            file.seek(begin)
            encoded = io.BytesIO(file.read(size))
        return decoded(encoded, self.pixels, f"the image at byte {begin} of {path}")


@functools.lru_cache(maxsize=1)  # a run asks for them twice, to train and to measure
def conceptual_captions(root: Path, seed: int) -> Splits:
    """Photographs from the web with their texts.

    Args:
        root: The data root.
        seed: Draws the pairs for validation among the first 1,002,000 training pairs; test pairs are the authors'
            validation pairs.

    Returns:
        1,000,000 training, 2,000 validation and some 15,000 test pairs of images and tokens (n, 77), with the numbers
        of their captions as targets, equal captions having one. Where there are fewer pairs, a fifth of them at most is
        for validation.

    Raises:
        DataError: Shards or tokenizer are missing, or damaged.
        MissingPackageError: Pillow or transformers is not installed.
    """
    required("PIL.Image", "Pillow", "decodes these images")
    tokens = Subwords(root)
    rest = stored(_shards(root, "train"), tokens, LENGTH, most=NUM_TRAIN + NUM_VALIDATION)
    order = torch.randperm(len(rest), generator=generator(seed, "conceptual captions: splits"))
    held = min(NUM_VALIDATION, len(rest) // 5)
    return Splits(
        train=_picked(rest, order[held:]),
        validation=_picked(rest, order[:held]),
        test=stored(_shards(root, "validation"), tokens, LENGTH),
    )


def stored(shards: Iterable[Path], tokens: Tokens, length: int, *, most: int | None = None) -> StoredSplit:
    """Look up the pairs in shards.

    Args:
        shards: Archives without compression.
        tokens: Make captions into numbers.
        length: Tokens of a caption.
        most: Pairs that are wanted, the first ones; None for all.

    Raises:
        DataError: A shard is damaged, or there is no pair in any.
    """
    paths = tuple(shards)
    places: list[tuple[int, int, int]] = []
    captions: list[str] = []
    for number, path in enumerate(paths):
        for begin, size, caption in _pairs(path):
            places.append((number, begin, size))
            captions.append(caption)
        if most is not None and len(places) >= most:
            break
    if not places:
        raise DataError(
            f"{len(paths)} shards ({', '.join(path.name for path in paths[:3])}) hold no pair of KEY.jpg and KEY.txt. "
            "Likely cause: they are other archives. Download the shards again."
        )
    numbers: dict[str, int] = {}
    targets = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions[:most]])
    inputs = (torch.tensor(places[:most]), tokens.encode(captions[:most], length))
    return StoredSplit(inputs, targets, shards=paths)


def _pairs(path: Path) -> Iterator[tuple[int, int, str]]:
    """First byte and bytes of each image, and its caption; the two files of a pair are neighbours."""
    images: dict[PurePosixPath, tuple[int, int]] = {}
    texts: dict[PurePosixPath, str] = {}
    with path.open("rb") as file:
        for name, begin, size in positions(path):
            key = PurePosixPath(name).with_suffix("")
            if name.endswith((".jpg", ".jpeg")):
                images[key] = (begin, size)
            elif name.endswith(".txt"):
                texts[key] = os.pread(file.fileno(), size, begin).decode().strip()
            if key in images and key in texts:
                yield *images.pop(key), texts.pop(key)


def _shards(root: Path, part: str) -> list[Path]:
    found = sorted((root / FOLDER).glob(f"cc3m-{part}-*.tar"))
    if not found:
        name, source = next(item for item in FILES.items() if part in item[0])
        raise DataError(f"{root / name} is missing. Needed is {source}")
    return found


def _picked(split: StoredSplit, chosen: Tensor) -> StoredSplit:
    """Some of the pairs, still where they lie."""
    places, tokens = split.inputs
    return replace(split, inputs=(places[chosen], tokens[chosen]), targets=split.targets[chosen])
