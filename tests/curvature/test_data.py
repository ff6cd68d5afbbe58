"""Batches: what is read, what is refused, and what changes between two passes."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from curvature_cases import case, data, mlp
from flatmin.curvature import EmpiricalRisk, Hessian
from flatmin.errors import ArgumentTypeError, DataError


def risk(batches, model=None, **kwargs):
    return EmpiricalRisk(model or mlp().double(), functional.cross_entropy, batches, **kwargs)


def mean(batches, **kwargs):
    with (r := risk(batches, **kwargs)).observed():
        return r.mean()


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ((b for b in data()), ArgumentTypeError, r"generator, which can be read only once.*list\(batches\)"),
        (iter(data()), ArgumentTypeError, "list_iterator, which can be read only once"),
        (data()[0], ArgumentTypeError, r"batches is one tuple.*\[\(inputs, targets\)\]"),
        (data()[0][0], ArgumentTypeError, "batches is one Tensor"),
        ({"x": torch.ones(2, 3)}, ArgumentTypeError, "batches is one dict"),
        (7, ArgumentTypeError, "batches is 7, which is nothing to iterate over"),
        ([data()[0][0]], DataError, r"batch 0 is a tensor of shape \(6, 3\)"),
        ([data()[0], (1, 2, 3)], DataError, "batch 1 is a tuple of 3 items.*mapping"),
        (["text"], DataError, "batch 0 is a str"),
        ([(torch.ones(0, 3).double(), torch.ones(0).long())], DataError, "0 examples"),
        ([(1.0, 2.0)], DataError, "no tensor with a first dimension"),
        ([{"images": torch.ones(2, 3)}], DataError, r"entries 'images', but Sequential.forward takes 'input'"),
        ([], DataError, "no batch"),
    ],
)
def test_what_is_refused(batches, error, message):
    with pytest.raises(error, match=message):
        mean(batches)


def test_the_mean_is_over_examples():
    model = mlp().double()
    x, y = (torch.cat(parts) for parts in zip(*data((7, 2)), strict=True))
    assert mean(data((7, 2)), model=model) == pytest.approx(functional.cross_entropy(model(x), y).item(), rel=1e-12)


class Alternating:
    """Re-iterable, but of other batches each time."""

    def __init__(self, *contents):
        self.contents = itertools.cycle(contents)

    def __iter__(self):
        return iter(next(self.contents))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (data((6, 5)), "12 examples in the first pass and 11 in this one"),
        ([], "no batch, but 12 examples the first time.*ran dry"),
        ([(2 * x, y) for x, y in data()], "at the same weights the mean loss was.*list"),
    ],
)
def test_data_that_change_between_passes(second, message):
    with (r := risk(Alternating(data(), second))).observed():
        r.mean()
        with pytest.raises(DataError, match=message):
            r.mean()


def test_other_weights_are_no_change_of_the_data():
    model = mlp().double()
    with (r := risk(data(), model=model)).observed():
        first = r.mean()
        model.a.weight.data = 2 * model.a.weight.data  # no version counter moves here
        assert r.mean() != first


def test_augmentation_and_shuffling_repeat_in_every_pass():
    """Every pass starts from the same random states, so random data make one fixed function."""

    class Augmented:
        def __iter__(self):
            return ((x + torch.randn_like(x), y) for x, y in data())

    model, loss_fn, _ = case("tanh")
    H = Hessian(model, loss_fn, Augmented())
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    first = H @ vector
    torch.rand(5)
    assert torch.equal(H @ vector, first)


class Pair(NamedTuple):
    x: Any
    y: Any


def test_pairs_may_be_lists_and_named_tuples():
    model = mlp().double()
    assert mean([list(b) for b in data()], model=model) == mean([Pair(*b) for b in data()], model=model)


def test_any_reiterable_will_do():
    class OldStyle:
        def __getitem__(self, index):
            return data()[index]

    model = mlp().double()
    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=6)
    assert mean(OldStyle(), model=model) == mean(data(), model=model) == mean(loader, model=model)


def test_nested_inputs_are_moved_and_passed():
    class Several(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3).double()

        def forward(self, views, **options):
            return self.linear(views[0] + views[1]["second"]) * options["scale"]

    x, y = data()[0]
    batch = {"views": [x, {"second": x}], "scale": 0.5, "labels": y}
    model = Several()
    r = EmpiricalRisk(model, lambda out, b: functional.cross_entropy(out, b["labels"]), [batch])
    with r.observed():
        assert r.mean() == pytest.approx(functional.cross_entropy(model.linear(2 * x) * 0.5, y).item())
