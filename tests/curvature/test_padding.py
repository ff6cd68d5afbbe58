"""Embeddings of padding have no gradient, whichever way curvature is computed."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import dense_hessian
from flatmin.curvature.operators import GGN, FiniteDifferenceHessian, ForwardOnlyGGN, ForwardOnlyHessian, Hessian


def padded(*, tied=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Tanh(), nn.Linear(3, 5, bias=False)).double()
    nn.init.normal_(model[0].weight)
    if tied:
        model[2].weight = model[0].weight
    batches = [(torch.tensor([0, 1, 2]), torch.tensor([0, 3, 2])), (torch.tensor([0, 4]), torch.tensor([1, 2]))]
    return model, functional.cross_entropy, batches


@pytest.mark.parametrize("route", ["reverse", "forward", "differences"])
def test_products(route):
    args = padded()
    matrix, unit = dense_hessian(*args), torch.eye(30, dtype=torch.float64)
    assert not matrix[:3].any()
    torch.testing.assert_close(Hessian(*args, route=route) @ unit, matrix, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(GGN(*args, route=route) @ unit, GGN(*args) @ unit, rtol=1e-5, atol=1e-6)
    assert not (GGN(*args, route=route) @ unit[:, :3]).any()


def test_forms_of_forward_passes():
    args = padded()
    matrix, unit = dense_hessian(*args), torch.eye(30, dtype=torch.float64)
    block = torch.cat([unit, unit[:, :3] + unit[:, 3:6]], dim=1)
    exact = (block * (matrix @ block)).sum(0)
    torch.testing.assert_close(ForwardOnlyHessian(*args).quadratic_forms(block), exact, rtol=1e-4, atol=1e-5)
    ggn = (block * (GGN(*args) @ block)).sum(0)
    torch.testing.assert_close(ForwardOnlyGGN(*args).quadratic_forms(block), ggn, rtol=1e-4, atol=1e-5)


def test_a_tied_row_goes_on_moving_where_it_is_a_class():
    args = padded(tied=True)
    unit = torch.eye(15, dtype=torch.float64)[:, :3]
    assert (FiniteDifferenceHessian(*args) @ unit).any()
