"""Images with captions, made of their class and of what can be measured on them.

A caption says the class and a few attributes, each a quantity of the pixels cut at fixed thresholds into words, in one
of several templates drawn at random. Several images may have one caption, so the target of a pair is the number of its
caption: retrieval counts whatever reads the same (:mod:`flatmin_lab.models.retrieval`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatmin_lab.data.cifar import cifar10_jpeg75
from flatmin_lab.data.digits import digits_all
from flatmin_lab.data.root import data_root
from flatmin_lab.data.splits import Split, Splits, parts
from flatmin_lab.data.tokens import Vocabulary
from flatmin_lab.seeds import generator


@dataclass(frozen=True)
class Attribute:
    """Something to be said of an image.

    Attributes:
        words: In ascending order, one more than there are thresholds.
        thresholds: Near the terciles of the images to train on, and fixed.
        measure: The quantity (n,) of standardised images (n, c, h, w).
    """

    words: tuple[str, ...]
    thresholds: tuple[float, ...]
    measure: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """The number of the word of each image."""
        return torch.bucketize(self.measure(images), torch.tensor(self.thresholds, dtype=images.dtype))


@dataclass(frozen=True)
class Captions:
    """Every caption that there can be, numbered.

    Attributes:
        templates: With fields ``{0}`` for the class, and ``{1}``, ... for the attributes.
        things: What the classes are called.
        attributes: What else is said.
        length: Tokens of a caption, begin and end among them.

    Example:
        >>> bright = Attribute(("dark", "bright"), (0.0,), lambda images: images.mean(dim=(1, 2, 3)))
        >>> captions = Captions(("a {1} {0}", "a {0} that is {1}"), ("cat", "dog"), (bright,), length=7)
        >>> [captions.text(number) for number in range(len(captions))][:3]
        ['a dark cat', 'a bright cat', 'a dark dog']
        >>> images, labels = torch.ones(2, 3, 4, 4), torch.tensor([0, 1])
        >>> pairs = captions.pairs(Split(images, labels), torch.Generator().manual_seed(0))
        >>> [captions.text(number) for number in pairs.targets.tolist()]
        ['a bright cat', 'a dog that is bright']
    """

    templates: tuple[str, ...]
    things: tuple[str, ...]
    attributes: tuple[Attribute, ...]
    length: int

    @property
    def _sizes(self) -> tuple[int, ...]:
        return len(self.templates), len(self.things), *(len(attribute.words) for attribute in self.attributes)

    def __len__(self) -> int:
        return math.prod(self._sizes)

    def text(self, number: int) -> str:
        """The caption of this number."""
        template, thing, *others = np.unravel_index(number, self._sizes)
        words = [attribute.words[i] for attribute, i in zip(self.attributes, others, strict=True)]
        return self.templates[template].format(self.things[thing], *words)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Of all captions."""
        words = itertools.chain(*(attribute.words for attribute in self.attributes), self.things)
        bare = (template.format(*[""] * (1 + len(self.attributes))) for template in self.templates)
        return Vocabulary(word for text in (*bare, *words) for word in text.split())

    def pairs(self, split: Split, source: torch.Generator) -> Split:
        """Return images with their captions.

        Args:
            split: Standardised images (n, c, h, w) and their classes.
            source: Draws the templates.

        Returns:
            Images and tokens (n, length) as inputs, and the numbers of the captions as targets.
        """
        (images,) = parts(split.inputs)
        numbers = torch.randint(len(self.templates), (len(split),), generator=source)
        said = (split.targets, *(attribute(images) for attribute in self.attributes))
        for size, part in zip(self._sizes[1:], said, strict=True):
            numbers = numbers * size + part
        texts = [self.text(number) for number in numbers.tolist()]
        return Split((images, self.vocabulary.encode(texts, self.length)), numbers)


def _difference(ahead: Callable[[Tensor], Tensor], behind: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The mean of one part of each image less that of another."""
    return lambda images: ahead(images).flatten(1).mean(dim=1) - behind(images).flatten(1).mean(dim=1)


def _mean(images: Tensor) -> Tensor:
    return images.flatten(1).mean(dim=1)


def _contrast(images: Tensor) -> Tensor:
    return images.mean(dim=1).flatten(1).std(dim=1)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Of the ink of a digit: its extent from left to right, and how much further to the right it is below."""
    ink = images - images.amin(dim=(1, 2, 3), keepdim=True)
    ink = ink / ink.sum(dim=(1, 2, 3), keepdim=True)
    x = torch.arange(images.shape[3], dtype=images.dtype)
    y = torch.arange(images.shape[2], dtype=images.dtype).unsqueeze(1)
    over = lambda quantity: (ink * quantity).sum(dim=(1, 2, 3))  # noqa: E731
    return (over(x * x) - over(x) ** 2).sqrt(), over(x * y) - over(x) * over(y)


CIFAR = Captions(
    templates=(
        "a {1} photo of a {0} {2} and {3} {4}",
        "a {0} in {1} light {2} {3} and {4}",
        "a {2} and {3} picture of a {1} {0} {4}",
        "this {0} is {1} {2} {3} and {4}",
    ),
    things=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    attributes=(
        Attribute(("dark", "dim", "bright"), (0.22, 0.73), _mean),
        Attribute(("cold", "neutral", "warm"), (-0.81, -0.36), _difference(lambda x: x[:, 0], lambda x: x[:, 2])),
        Attribute(("flat", "soft", "sharp"), (0.67, 0.92), _contrast),
        Attribute(
            ("brighter on the right", "even", "brighter on the left"),
            (-0.09, 0.09),
            _difference(lambda x: x[..., :16], lambda x: x[..., 16:]),
        ),
    ),
    length=16,
)
"""3,240 captions of photographs."""

DIGITS = Captions(
    templates=("a {1} {2} {3} {0}", "the number {0} {1} {3} and {2}"),
    things=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    attributes=(
        Attribute(("thin", "plain", "bold"), (-0.065, 0.023), _mean),
        Attribute(("narrow", "common", "wide"), (1.2, 1.32), lambda images: _moments(images)[0]),
        Attribute(("right-leaning", "upright", "left-leaning"), (-0.06, 0.49), lambda images: _moments(images)[1]),
    ),
    length=12,
)
"""540 captions of digits."""


def captioned_digits(seed: int) -> Splits:
    """Scans of handwritten digits (n, 1, 8, 8) with their captions; the 797 test pairs are the same for every seed.

    Args:
        seed: Draws 200 of 1,000 images for validation, and the templates of these 1,000.

    Example:
        >>> splits = captioned_digits(0)
        >>> [len(split) for split in (splits.train, splits.validation, splits.test)]
        [800, 200, 797]
    """
    rest, test = (Split(parts(split.inputs)[0].view(-1, 1, 8, 8), split.targets) for split in digits_all())
    order = torch.randperm(len(rest), generator=generator(seed, "captioned digits: splits"))
    pairs = DIGITS.pairs(rest[order], generator(seed, "captioned digits: templates"))
    return Splits(pairs[200:], pairs[:200], DIGITS.pairs(test, generator(0, "captioned digits: test templates")))


@functools.lru_cache(maxsize=1)  # a run asks for them twice, to train and to measure
def captioned_cifar(seed: int) -> Splits:
    """Photographs (n, 3, 32, 32) with their captions, from the file of :mod:`flatmin_lab.data.cifar`.

    Args:
        seed: Draws 4,000 images to train on and 1,000 for validation, and their templates; a fifth for validation where
            the file has fewer. The 2,000 test pairs are the same for every seed.

    Raises:
        DataError: The file is missing or is another one.
        MissingPackageError: Pillow is not installed.
    """
    root = data_root(None)

    def drawn(seed: int, part: str, most: int) -> Split:
        order = generator(seed, f"captioned cifar: {part}")
        split = cifar10_jpeg75(root, lambda count: torch.randperm(count, generator=order)[:most], test=part == "test")
        return CIFAR.pairs(split, generator(seed, f"captioned cifar: {part} templates"))

    pairs = drawn(seed, "splits", 5000)
    held = len(pairs) // 5
    return Splits(pairs[held:], pairs[:held], drawn(0, "test", 2000))
