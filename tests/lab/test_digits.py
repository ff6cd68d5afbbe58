"""The splits: real scans, disjoint, a function of the seed alone, and the same for every method."""

import pytest
import torch

from flatmin.errors import ArgumentError
from flatmin_lab.data.digits import digits_clean, digits_noisy
from flatmin_lab.tasks import TASKS, task


def rows(split):
    return {tuple(row) for row in split.inputs.tolist()}


@pytest.mark.parametrize(("load", "num_train"), [(digits_clean, 200), (digits_noisy, 300)])
def test_sizes_and_scale(load, num_train):
    splits = load(seed=3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (num_train, 500, 797)
    assert splits.train.inputs.shape == (num_train, 64)
    assert abs(splits.test.inputs.mean()) < 0.1
    assert 0.9 < splits.test.inputs.std() < 1.1
    assert set(splits.test.targets.tolist()) == set(range(10))


@pytest.mark.parametrize("load", [digits_clean, digits_noisy])
def test_splits_share_no_image(load):
    splits = load(seed=0)
    assert not rows(splits.train) & rows(splits.validation)
    assert not rows(splits.train) & rows(splits.test)
    assert not rows(splits.validation) & rows(splits.test)


def test_no_seed_trains_or_selects_on_a_test_image_of_any_other():
    test = rows(digits_noisy(seed=0).test)
    for seed in range(1, 5):
        splits = digits_noisy(seed)
        assert rows(splits.test) == test
        assert not (rows(splits.train) | rows(splits.validation)) & test


def test_noise_is_in_the_training_labels_alone():
    noisy, scans = digits_noisy(seed=1), _true_labels()
    wrong = sum(scans[tuple(x)] != y for x, y in zip(*_lists(noisy.train), strict=True))
    assert 0.2 * 300 < wrong <= 0.3 * 300  # 30 % are redrawn, a tenth of which hit the true label by chance
    for split in (noisy.validation, noisy.test, digits_clean(seed=1).train):
        assert all(scans[tuple(x)] == y for x, y in zip(*_lists(split), strict=True))


@pytest.mark.parametrize("load", [digits_clean, digits_noisy])
def test_seed_decides_everything_and_nothing_global_does(load):
    before = torch.get_rng_state()
    first = load(seed=5)
    torch.manual_seed(123)
    second = load(seed=5)
    torch.set_rng_state(before)
    for one, other in ((first.train, second.train), (first.validation, second.validation)):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    assert not torch.equal(first.train.inputs, load(seed=6).train.inputs)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ArgumentError, match=r"task is 'digits-nosy'.*Did you mean 'digits-noisy'"):
        task("digits-nosy")


def test_registry_is_keyed_by_name():
    assert all(name == t.name for name, t in TASKS.items())


def _lists(split):
    return split.inputs.tolist(), split.targets.tolist()


def _true_labels():
    from flatmin_lab.data.digits import _scans

    return {tuple(x): y for x, y in zip(*(t.tolist() for t in _scans()), strict=True)}
