"""Where a loss is cut from the model."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from flatmin.curvature.batch import BatchLoss, tensors_in
from flatmin.curvature.cut import cut, outputs_of
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.perturb import RandomState

W = nn.Parameter(torch.ones(3))


def names(output, loss):
    found = cut(output, loss)
    return {name for name, tensor in output.items() for hit in found if hit is tensor}


def test_hidden_states_behind_the_logits_are_no_outputs():
    hidden = W.exp()
    logits = hidden.sin()
    assert names({"logits": logits, "hidden": hidden}, logits.sum()) == {"logits"}
    assert names({"logits": logits, "hidden": hidden}, (logits * hidden).sum()) == {"logits", "hidden"}
    assert names({"logits": logits, "unused": W.cos()}, logits.sum()) == {"logits"}


def test_the_loss_is_no_output():
    logits = W.exp()
    loss = logits.square().mean()
    for end in (loss, loss.reshape(()), loss * 2, loss + 0.1 * logits.sum(), loss.double()):
        assert names({"loss": loss, "logits": logits}, end) == {"logits"}


def test_numbers_are_outputs_where_nothing_lies_behind_them():
    energy, shape = W.exp().sum(), W.sin()
    assert names({"energy": energy}, (energy - 1).square()) == {"energy"}
    assert names({"energy": energy, "shape": shape}, energy * shape.sum()) == {"energy", "shape"}


def test_views_and_parts_of_the_logits():
    logits = torch.outer(W, W)
    assert names({"logits": logits}, functional.cross_entropy(logits[:-1].reshape(-1, 3), torch.tensor([0, 1]))) == {
        "logits"
    }
    first, second = W.exp().split([1, 2])  # one node with two ends
    assert names({"first": first, "second": second}, second.sum()) == {"second"}


def test_tensors_are_found_in_containers():
    assert len(list(tensors_in({"a": W, "b": (W, [W, "text", None]), "c": 3}))) == 3


@pytest.mark.parametrize(
    ("output", "loss", "error", "message"),
    [
        ({}, W.sum(), ArgumentError, "no output of the model.*returns its loss alone.*logits"),
        ({"z": W.exp()}, torch.ones(()), ArgumentTypeError, "no trainable parameter"),
    ],
)
def test_messages(output, loss, error, message):
    part = BatchLoss(None, 1, 0, RandomState.capture(), loss, output)
    with pytest.raises(error, match=message):
        outputs_of(part)
