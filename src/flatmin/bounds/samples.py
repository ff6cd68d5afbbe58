"""Whether examples are what a bound takes them for: each once, as it is, and unknown to the prior."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from flatmin.curvature.batch import num_examples
from flatmin.curvature.data import generators_of
from flatmin.errors import ArgumentError
from flatmin.perturb.randomness import RandomState

_LOOK = 64  # examples that are read twice to find augmentation


def check_independent(batches: Iterable[Any]) -> None:
    """Raise ArgumentError where examples are repeated by the sampler, or augmented at random.

    Random states are left as found.
    """
    if isinstance(batches, (list, tuple)):
        return  # in memory, and so the same each time
    if not isinstance(batches, DataLoader):
        _check_repeatable(batches)
        return
    sampler = batches.sampler
    if isinstance(sampler, WeightedRandomSampler) or (isinstance(sampler, RandomSampler) and sampler.replacement):
        raise ArgumentError(
            f"batches are drawn by a {type(sampler).__name__} that repeats examples, which a bound would count as new "
            "ones. Pass a loader with shuffle=False."
        )
    dataset: Any = batches.dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        _check_repeatable(batches)
        return
    with _undisturbed(batches):
        for index in range(0, len(dataset), max(1, len(dataset) // _LOOK)):
            if _digest(dataset[index]) != _digest(dataset[index]):
                raise ArgumentError(
                    f"example {index} is another one each time it is read: the data are augmented at random, and "
                    "augmented copies of one example are not independent. Certify on the data without augmentation."
                )


def _check_repeatable(batches: Iterable[Any]) -> None:
    """Raise ArgumentError unless two passes give the same examples, in whatever order."""
    with _undisturbed(batches):
        first, second = (Counter(_digests(batches)) for _ in range(2))
    if first != second:
        changed = (first - second).total()
        raise ArgumentError(
            f"{changed} of {first.total()} examples are others in a second pass: the data are augmented at random, or "
            "drawn anew, and do not count as independent examples seen once. Certify on the data as they are."
        )


def check_disjoint(batches: Iterable[Any], prior_batches: Iterable[Any]) -> None:
    """Raise ArgumentError if an example is among both."""
    seen = set(_examples(prior_batches))
    shared = sum(example in seen for example in _examples(batches))
    if shared:
        raise ArgumentError(
            f"{shared} of the examples to certify on are among those that the prior was fitted on, so the prior "
            "depends on them and the bound does not hold. Split the data first, and fit the prior on one part."
        )


def _examples(batches: Iterable[Any]) -> Iterator[bytes]:
    """Yield a digest of every example, random states left as found."""
    with _undisturbed(batches):
        yield from _digests(batches)


def _digests(batches: Iterable[Any]) -> Iterator[bytes]:
    for batch in batches:
        parts = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
        for index in range(num_examples(batch)):
            yield _digest([_row(part, index) for part in parts])


@contextmanager
def _undisturbed(batches: Iterable[Any]) -> Iterator[None]:
    """Put the random states that reading ``batches`` moves back in the end."""
    state = RandomState.capture(())
    held = [(generator, generator.get_state()) for generator in generators_of(batches)]
    try:
        yield
    finally:
        state.restore()
        for generator, found in held:
            generator.set_state(found)


def _row(part: Any, index: int) -> Any:
    if isinstance(part, (Tensor, list)):
        return part[index] if len(part) > index else part
    if isinstance(part, Mapping):
        return [_row(item, index) for item in part.values()]
    return [_row(item, index) for item in part] if isinstance(part, tuple) else part


def _digest(value: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for item in _leaves(value):
        if isinstance(item, Tensor):
            plain = item.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        else:
            digest.update(repr(item).encode())
    return digest.digest()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
