"""Flips and crops against a literal twin that treats one image after another, and their distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatmin.errors import ArgumentError
from flatmin_lab.data.augmentation import AUGMENTATIONS, flip_and_crop


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def twin(inputs, generator, padding, flip):
    """The definition, pixel by pixel, with the draws in the same order."""
    n, _, height, width = inputs.shape
    offsets = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
    coins = torch.randint(1 + flip, (n, 1), generator=generator)
    out = torch.zeros_like(inputs)
    for k in range(n):
        down, right = int(offsets[0, k, 0]) - padding, int(offsets[1, k, 0]) - padding
        for i in range(height):
            for j in range(width):
                at = (width - 1 - j if coins[k, 0] else j) + right
                if 0 <= i + down < height and 0 <= at < width:
                    out[k, :, i, j] = inputs[k, :, i + down, at]
    return out


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_it_is_its_literal_twin(shape, padding, flip, dtype, seed):
    inputs = torch.randint(1, 255, shape, generator=source(seed)).to(dtype)
    found = flip_and_crop(inputs, source(seed), padding=padding, flip=flip)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert torch.equal(found, twin(inputs, source(seed), padding, flip))


def test_every_offset_and_side_is_as_likely():
    n, padding = 20000, 1
    image = torch.arange(1, 10).view(1, 1, 3, 3)
    found = flip_and_crop(image.expand(n, 1, 3, 3), source(), padding=padding)
    kinds, counts = torch.unique(found.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 3 * 3 * 2
    p = 1 / 18
    assert bool(((counts / n - p).abs() < 4.5 * math.sqrt(p * (1 - p) / n)).all())


def test_the_names():
    inputs = torch.rand(50, 3, 6, 6, generator=source(1))
    flipped = AUGMENTATIONS["flip"](inputs, source())
    as_they_were = (flipped == inputs).flatten(1).all(dim=1)
    mirrored = (flipped == inputs.flip(3)).flatten(1).all(dim=1)
    assert bool((as_they_were ^ mirrored).all())
    assert 0 < int(mirrored.sum()) < 50
    assert torch.equal(AUGMENTATIONS["crop"](inputs, source()), twin(inputs, source(), 4, flip=False))
    assert torch.equal(AUGMENTATIONS["flip-crop"](inputs, source()), twin(inputs, source(), 4, flip=True))


def test_the_generator_decides_and_nothing_global_is_touched():
    inputs = torch.rand(8, 3, 5, 5, generator=source(1))
    before, untouched, generator = torch.get_rng_state(), inputs.clone(), source()
    first, second = flip_and_crop(inputs, generator), flip_and_crop(inputs, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inputs, untouched)
    assert torch.equal(first, flip_and_crop(inputs, source()))
    assert not torch.equal(first, second)


def test_what_is_refused():
    with pytest.raises(ArgumentError, match=r"inputs is a tensor of shape \(2, 64\), and images.*without augmentation"):
        flip_and_crop(torch.zeros(2, 64), source())
    with pytest.raises(ArgumentError, match=r"inputs is <class 'tuple'>, and images.*paired with text"):
        flip_and_crop((torch.zeros(2, 1, 8, 8), torch.zeros(2, 3)), source())
    with pytest.raises(ArgumentError, match="padding is -1"):
        flip_and_crop(torch.zeros(2, 1, 8, 8), source(), padding=-1)
