"""Whether examples are what a bound takes them for: each once, as it is, and unknown to the prior."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from flatmin.curvature.batch import num_examples, tensors_in
from flatmin.curvature.data import generators_of, reiterable
from flatmin.errors import ArgumentError
from flatmin.perturb.randomness import RandomState

_LOOK = 64  # examples that are read twice to find augmentation


def check_independent(batches: Iterable[Any]) -> None:
    """Raise ArgumentError where examples are repeated by the sampler or in a list, or augmented at random.

    Random states are left as found.
    """
    if isinstance(batches, (list, tuple)):
        _check_once(Counter(filter(None, map(_place, batches))), "the same batch")
    elif isinstance(batches, DataLoader) and _is_by_index(batches.dataset):
        with _undisturbed(batches):
            _check_loader(batches)
    else:
        first, changed = _passes(batches)
        if changed:
            raise ArgumentError(
                f"{changed} of {first.total()} examples are others in a second pass: the data are augmented at random, "
                "or drawn anew, and do not count as independent examples seen once. Certify on the data as they are."
            )


def check_disjoint(batches: Iterable[Any], prior_batches: Iterable[Any]) -> None:
    """Raise ArgumentError if an example is among both, or if the prior's are none, or others each time."""
    known, changed = _passes(reiterable(prior_batches))
    if not known:
        raise ArgumentError("prior_batches is empty, so there is nothing to compare with. Leave it out, or pass them.")
    if changed:
        raise ArgumentError(
            f"{changed} of the {known.total()} examples of the prior are others in a second pass, so that nobody can "
            "find them among those to certify on. Pass them as prior_batches without augmentation."
        )
    with _undisturbed(batches):
        shared = sum(example in known for example in _digests(batches))
    if shared:
        raise ArgumentError(
            f"{shared} of the examples to certify on are among those that the prior was fitted on, so the prior "
            "depends on them and the bound does not hold. Split the data first, and fit the prior on one part."
        )


def _check_loader(loader: DataLoader[Any]) -> None:
    """Raise where a loader reads an example twice in one pass, or another one each time."""
    dataset: Any = loader.dataset
    groups = [_flat(item) for item in (loader.sampler if loader.batch_sampler is None else loader.batch_sampler)]
    indices = [index for group in groups for index in group]
    _check_once(Counter(_origin(dataset, index) for index in indices), f"one example of the {type(dataset).__name__}")
    for index in indices[:: max(1, len(indices) // _LOOK)]:
        if _digest(dataset[index]) != _digest(dataset[index]):
            raise ArgumentError(
                f"example {index} is another one each time it is read: the data are augmented at random, and "
                "augmented copies of one example are not independent. Certify on the data without augmentation."
            )
    if loader.batch_sampler is not None and groups:
        first, second = (_digest(loader.collate_fn([dataset[index] for index in groups[0]])) for _ in range(2))
        if first != second:
            raise ArgumentError(
                "the loader's collate_fn makes another batch each time of the same examples, which are then augmented "
                "or mixed, and not independent. Certify with a loader that has none."
            )


def _check_once(seen: Counter[Any], what: str) -> None:
    times = max(seen.values(), default=1)
    if times > 1:
        raise ArgumentError(
            f"{what} comes {times} times in one pass over the batches, and a bound would count it as new each time. "
            "Pass every example once: a list of one pass, or a loader with shuffle=False."
        )


def _is_by_index(dataset: Any) -> bool:
    return not isinstance(dataset, IterableDataset) and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def _origin(dataset: Any, index: Any) -> Any:
    """Return where a subset takes an example from."""
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, dataset.indices[index]
    return int(index) if isinstance(index, (Tensor, np.integer)) else index


def _flat(item: Any) -> list[Any]:
    return list(item) if isinstance(item, (list, tuple)) else [item]


def _place(batch: Any) -> tuple[Any, ...]:
    """Return where the tensors of a batch lie in memory."""
    return tuple((t.data_ptr(), tuple(t.shape)) for t in tensors_in(batch) if t.numel())


def _passes(batches: Iterable[Any]) -> tuple[Counter[bytes], int]:
    """Return digests of all examples, and how many are others in a second pass, in whatever order."""
    with _undisturbed(batches):
        first = Counter(_digests(batches))
        if isinstance(batches, (list, tuple)):
            return first, 0  # in memory, and so the same each time
        return first, (first - Counter(_digests(batches))).total()


def _digests(batches: Iterable[Any]) -> Iterator[bytes]:
    for batch in batches:
        parts = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
        for index in range(count := num_examples(batch)):
            yield _digest([_row(part, index, count) for part in parts])


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


def _row(part: Any, index: int, count: int) -> Any:
    """Return what ``part`` of a batch of ``count`` examples holds of one, or all of it if they have it in common."""
    if isinstance(part, (Tensor, list)):
        has_rows = (not isinstance(part, Tensor) or part.dim() > 0) and len(part) == count
        return part[index] if has_rows else part
    if isinstance(part, Mapping):
        return [_row(item, index, count) for item in part.values()]
    return [_row(item, index, count) for item in part] if isinstance(part, tuple) else part


def _digest(value: Any) -> bytes:
    """Return a digest of all that ``value`` holds; numbers of another precision with the same value have the same."""
    digest = hashlib.blake2b(digest_size=16)
    for item in _leaves(value):
        plain = item.detach().cpu() if isinstance(item, Tensor) else _array(item)
        if plain is None:
            digest.update(pickle.dumps(item))
            continue
        wide = plain.double() if plain.is_floating_point() else plain if plain.is_complex() else plain.long()
        digest.update(f"{tuple(plain.shape)}".encode())
        digest.update(wide.contiguous().numpy().tobytes())
    return digest.digest()


def _array(item: Any) -> Tensor | None:
    """Return numbers, arrays and images as a tensor; None for anything else."""
    array = np.asarray(item)
    return torch.from_numpy(np.array(array)) if array.dtype.kind in "biuf" and array.dtype.isnative else None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
