"""Flat vectors and named tensors."""

import pytest
import torch

from curvature_cases import case
from flatmin.curvature import Layout
from flatmin.errors import ArgumentError

LAYOUT = Layout.of({"weight": torch.zeros(2, 3), "gain": torch.zeros(()), "bias": torch.zeros(2)})


def test_there_and_back():
    vector = torch.arange(9.0)
    named = LAYOUT.split(vector)
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == {"weight": (2, 3), "gain": (), "bias": (2,)}
    assert torch.equal(LAYOUT.flatten(named), vector)
    named["gain"].fill_(70)  # views
    assert vector[6] == 70
    assert LAYOUT.numel == 9


def test_order_is_the_layouts_and_missing_names_are_zero():
    flat = LAYOUT.flatten({"bias": torch.ones(2), "weight": torch.full((2, 3), 2.0)})
    assert flat.tolist() == [2.0] * 6 + [0.0] + [1.0] * 2


def test_is_the_order_of_named_parameters():
    model = case("tied").model
    flat = torch.nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(Layout.of(dict(model.named_parameters())).flatten(dict(model.named_parameters())), flat)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LAYOUT.split(torch.ones(8)), r"shape \(8,\), but the parameters have 9"),
        (lambda: LAYOUT.split(torch.ones(9, 2)), "one column of a block"),
        (lambda: LAYOUT.flatten({"wieght": torch.ones(2, 3)}), "'wieght' is the name of no trainable.*'weight'"),
        (lambda: LAYOUT.flatten({"bias": torch.ones(3)}), r"'bias' has shape \(3,\), but the parameter has \(2,\)"),
        (lambda: LAYOUT.flatten({}), "no tensor was given"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
