"""Every operator, and what is made of them, against whole matrices."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import CASES, case
from flatmin.curvature.operators import GGN, EmpiricalFisher, FunctionalHessian, Hessian
from flatmin.errors import ArgumentError


def eye(operator):
    return torch.eye(operator.shape[0], dtype=operator.dtype)


def jacobians(model, loss_fn, batches):
    """J of all outputs, the outputs' Hessian and slope of the mean loss, one example after the other."""
    model.eval()
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    rows = []
    for x, y in batches:
        for i in range(len(x)):

            def outputs(w, x=x[i : i + 1]):
                return torch.func.functional_call(model, w, (x,))

            J = torch.func.jacrev(outputs)(weights)
            z = outputs(weights).detach()
            J = torch.cat([J[n].reshape(z.numel(), -1) for n in weights], dim=1)

            def loss(z, y=y[i : i + 1]):
                return loss_fn(z, y)

            M = torch.autograd.functional.hessian(loss, z).reshape(z.numel(), z.numel())
            rows.append((J, M, torch.func.grad(loss)(z).reshape(-1)))
    return rows


PAIRS = ["tanh", "gelu", "relu", "ragged", "regression", "conv, batch-norm, dropout", "tied", "frozen", "unused"]


@pytest.mark.parametrize("name", PAIRS)
def test_outer_products_are_those_of_jacobians(name):
    model, loss_fn, batches = case(name)
    rows = jacobians(model, loss_fn, batches)
    G = sum(J.T @ M @ J for J, M, _ in rows) / len(rows)
    F = sum(torch.outer(J.T @ s, J.T @ s) for J, _, s in rows) / len(rows)
    tight = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(GGN(model, loss_fn, batches) @ torch.eye(len(G), dtype=torch.float64), G, **tight)
    fisher = EmpiricalFisher(model, loss_fn, batches)
    torch.testing.assert_close(fisher @ torch.eye(len(F), dtype=torch.float64), F, **tight)


@pytest.mark.parametrize("name", [n for n in CASES if n != "constant gradient"])
def test_the_functional_part_is_the_difference(name):
    H, G, R = (kind(*case(name)) for kind in (Hessian, GGN, FunctionalHessian))
    torch.testing.assert_close(R @ eye(R), (H - G) @ eye(R), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [Hessian, GGN, EmpiricalFisher, FunctionalHessian])
@pytest.mark.parametrize("memory", [0, 1, 3000, None])
def test_a_session_changes_no_product(kind, memory):
    model, loss_fn, batches = case("ragged")
    operator = kind(model, loss_fn, batches, memory=memory)
    expected = operator @ eye(operator)
    with operator.session():
        for _ in range(3):
            torch.testing.assert_close(operator @ eye(operator), expected)
        with torch.no_grad():
            model.a.weight.mul_(1.5)
        moved = operator @ eye(operator)
    torch.testing.assert_close(moved, kind(model, loss_fn, batches) @ eye(operator))
    assert not torch.allclose(moved, expected)


def test_a_session_builds_each_graph_once():
    H = Hessian(*case("ragged"))
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    H @ vector
    assert H.gradients == pytest.approx(3)
    with H.session():
        for _ in range(5):
            H @ vector
    assert H.gradients == pytest.approx(3 + 1 + 5 * 2)


def test_sums_blocks_and_projections():
    H, G = Hessian(*case("gelu")), GGN(*case("gelu"))
    h, g, one = H @ eye(H), G @ eye(G), eye(H)
    torch.testing.assert_close((0.5 * (H + 2 * G) - G / 4) @ one, 0.5 * h + g - g / 4)
    torch.testing.assert_close(-H @ one, -h)
    block = H.block("b.*")
    assert list(block.layout.shapes) == ["b.weight", "b.bias"]
    torch.testing.assert_close(block @ eye(block), h[20:, 20:])
    torch.testing.assert_close((H - G).block("a.bias") @ torch.eye(5, dtype=torch.float64), (h - g)[15:20, 15:20])
    basis = torch.randn(H.shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    P = basis @ torch.linalg.inv(basis.T @ basis) @ basis.T
    torch.testing.assert_close(H.projected(basis) @ one, P @ h @ P)
    torch.testing.assert_close(H.projected(basis, complement=True) @ one, (one - P) @ h @ (one - P))


def test_scipy_finds_the_same_eigenvalues():
    from scipy.sparse.linalg import eigsh

    H = Hessian(*case("tanh"))
    top = eigsh(H.to_scipy(), k=2, which="LM", return_eigenvectors=False, v0=np.ones(H.shape[0]))
    expected = torch.linalg.eigvalsh(H @ eye(H))
    expected = expected[expected.abs().argsort()[-2:]]
    np.testing.assert_allclose(np.sort(top), np.sort(expected.numpy()), rtol=1e-8)


def test_a_function_of_parameters_and_inputs():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = {"layer.w": torch.ones(3, 2, dtype=torch.float64)}
    H = Hessian(
        lambda p, x: (x @ p["layer.w"]).exp(),
        functional.mse_loss,
        [(x, torch.zeros(4, 2, dtype=torch.float64))],
        parameters=weights,
    )

    def f(w):
        return functional.mse_loss((x @ w.view(3, 2)).exp(), torch.zeros(4, 2, dtype=torch.float64))

    torch.testing.assert_close(H @ eye(H), torch.autograd.functional.hessian(f, weights["layer.w"].reshape(-1)))
    weights["layer.w"].mul_(0.5)
    torch.testing.assert_close(H @ eye(H), torch.autograd.functional.hessian(f, weights["layer.w"].reshape(-1)))


def test_several_inputs():
    model = nn.Bilinear(2, 3, 2).double()
    a, b, y = torch.ones(4, 2).double(), torch.ones(4, 3).double(), torch.zeros(4, 2).double()
    as_tuple = Hessian(model, functional.mse_loss, [((a, b), y)])
    by_name = Hessian(model, functional.mse_loss, [({"input1": a, "input2": b}, y)])
    torch.testing.assert_close(as_tuple @ eye(as_tuple), by_name @ eye(by_name))


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda H: H.block("a.wieght"), "'a.wieght' fits no trainable parameter.*mean 'a.weight'"),
        (lambda H: H.projected(torch.ones(5, 1)), r"basis has shape \(5, 1\).*v\[:, None\]"),
        (lambda H: H.projected(torch.ones(38, 2)), "linearly dependent"),
        (lambda H: H + torch.eye(3), "dimension 38 and 3"),
    ],
)
def test_messages(do, message):
    with pytest.raises(ArgumentError, match=message):
        do(Hessian(*case("tanh")))


def test_what_is_made_of_one_risk_counts_once():
    H = Hessian(*case("ragged"))
    R = H.related(FunctionalHessian)
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    torch.testing.assert_close(R @ vector, FunctionalHessian(*case("ragged")) @ vector)
    (H + R) @ vector
    assert H.gradients == R.gradients == (H + R).gradients == pytest.approx(9)
    apart = H + GGN(*case("ragged"))
    apart @ vector
    assert apart.gradients == pytest.approx(9 + 3 + 1 + 4 / 3)
