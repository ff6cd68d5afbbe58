"""Products with the Hessian against the whole matrix."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import CASES, case, dense_hessian, mlp
from flatmin.curvature import Hessian
from flatmin.errors import ArgumentError, ArgumentTypeError, DataError, NonFiniteError


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_matrix(name):
    model, loss_fn, batches = case(name)
    expected = dense_hessian(model, loss_fn, batches)
    H = Hessian(model, loss_fn, batches)
    d = len(expected)
    assert H.shape == (d, d)
    assert (H.dtype, H.device) == (torch.float64, torch.device("cpu"))
    torch.testing.assert_close(H @ torch.eye(d, dtype=torch.float64), expected, rtol=1e-9, atol=1e-12)
    vector = torch.linspace(-1, 1, d, dtype=torch.float64)
    torch.testing.assert_close(H @ vector, expected @ vector, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_low_precision_models_take_and_give_float32(dtype, tolerance):
    model, loss_fn, batches = case("gelu", dtype)
    expected = dense_hessian(*case("gelu")).float()
    H = Hessian(model, loss_fn, batches)
    assert H.dtype == torch.float32
    product = H @ torch.eye(H.shape[0])
    assert product.dtype == torch.float32
    assert (product - expected).norm() < tolerance * expected.norm()


def test_a_short_last_batch_counts_by_its_size():
    model, loss_fn, batches = case("ragged")
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    vector = torch.ones(Hessian(model, loss_fn, whole).shape[0], dtype=torch.float64)
    torch.testing.assert_close(Hessian(model, loss_fn, batches) @ vector, Hessian(model, loss_fn, whole) @ vector)


def test_current_mode_takes_batch_statistics_and_fixed_dropout_masks():
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    H = Hessian(model, loss_fn, batches, mode="current")
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    buffers = [b.clone() for b in model.buffers()]
    torch.rand(3)  # someone else draws in between
    trained, again = H @ vector, H @ vector
    assert torch.equal(trained, again)
    assert all(map(torch.equal, buffers, model.buffers()))
    assert not torch.allclose(trained, Hessian(model, loss_fn, batches) @ vector)
    block = H @ torch.eye(H.shape[0], dtype=torch.float64)
    torch.testing.assert_close(block, block.T)


def test_looks_at_the_present_weights():
    model, loss_fn, batches = case("tanh")
    H = Hessian(model, loss_fn, batches)
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    before = H @ vector
    with torch.no_grad():
        model.a.weight.mul_(2)
    assert not torch.allclose(H @ vector, before)
    torch.testing.assert_close(H @ vector, dense_hessian(model, loss_fn, batches) @ vector)


def test_works_where_gradients_are_switched_off():
    model, loss_fn, batches = case("tanh")
    H = Hessian(model, loss_fn, batches)
    with torch.no_grad():
        plain = H @ torch.ones(H.shape[0], dtype=torch.float64)
    with torch.inference_mode():
        inferred = H @ torch.ones(H.shape[0], dtype=torch.float64)
    assert torch.equal(plain, inferred)
    assert not plain.requires_grad


def test_vectors_as_named_tensors():
    model, loss_fn, batches = case("frozen")
    H = Hessian(model, loss_fn, batches)
    assert list(H.layout.shapes) == ["a.bias", "b.weight"]
    named = {"b.weight": torch.randn(3, 5, dtype=torch.float64)}
    product = H.layout.split(H @ H.layout.flatten(named))
    matrix = dense_hessian(model, loss_fn, batches)
    torch.testing.assert_close(product["a.bias"], matrix[:5, 5:] @ named["b.weight"].reshape(-1))


def test_a_compiled_model_is_measured_by_its_original():
    model, loss_fn, batches = case("tanh")
    vector = torch.ones(Hessian(model, loss_fn, batches).shape[0], dtype=torch.float64)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(Hessian(compiled, loss_fn, batches) @ vector, Hessian(model, loss_fn, batches) @ vector)


def test_batches_of_a_loader_that_shuffles():
    model, loss_fn, batches = case("ragged")
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5, shuffle=True)
    expected = dense_hessian(model, loss_fn, [(x, y)])
    product = Hessian(model, loss_fn, loader) @ torch.eye(len(expected), dtype=torch.float64)
    torch.testing.assert_close(product, expected)


def wrong(**changes):
    model, loss_fn, batches = case("tanh")
    given = {"model": model, "loss_fn": loss_fn, "batches": batches, "mode": "eval", "block": None} | changes
    block = given.pop("block")
    H = Hessian(**given)
    return H @ (torch.ones(H.shape[0], dtype=torch.float64) if block is None else block)


def poisoned(parameter: str) -> nn.Module:
    model = mlp().double()
    model.get_parameter(parameter).data[0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"model": mlp().double().requires_grad_(requires_grad=False)},
            ArgumentError,
            "no parameter that requires gradients.*frozen",
        ),
        ({"model": lambda x: x}, ArgumentTypeError, r"model is .*torch\.nn\.Module is needed"),
        ({"loss_fn": 3}, ArgumentTypeError, "loss_fn is 3"),
        ({"mode": "evil"}, ArgumentError, "mode is 'evil'.*Did you mean 'eval'"),
        ({"model": nn.Linear(3, 3, dtype=torch.complex64)}, ArgumentTypeError, "'weight' is complex"),
        ({"model": poisoned("b.bias")}, NonFiniteError, "'b.bias' holds NaN.*diverged"),
        (
            {"loss_fn": lambda o, t: functional.cross_entropy(o, t) * float("inf")},
            NonFiniteError,
            "loss of batch 0 is inf.*data",
        ),
        (
            {"loss_fn": lambda o, t: functional.cross_entropy(o, t, reduction="none")},
            ArgumentTypeError,
            r"shape \(6,\).*\.mean\(\)",
        ),
        ({"loss_fn": lambda o, t: 0.5}, ArgumentTypeError, r"returned a float.*\.item\(\)"),
        ({"loss_fn": lambda o, t: o.detach().sum()}, ArgumentTypeError, "no trainable parameter.*detach"),
        ({"loss_fn": lambda o, t: (o - o).abs().sqrt().sum()}, NonFiniteError, "product.*second derivative"),
        ({"block": torch.ones(5)}, ArgumentError, r"shape \(5,\), but the Hessian acts on 38 trainable.*flatten"),
        ({"block": torch.ones(38, 2, 2)}, ArgumentError, r"\(38, 2, 2\)"),
        ({"block": torch.full((38,), float("nan"))}, ArgumentError, "vector holds NaN"),
        ({"block": [1.0]}, ArgumentTypeError, "multiplied by a list"),
        ({"batches": []}, DataError, "no batch.*empty split"),
    ],
)
def test_messages(changes, error, message):
    with pytest.raises(error, match=message):
        wrong(**changes)


def test_a_loss_of_one_element_is_a_scalar():
    model, _, batches = case("tanh")
    H = Hessian(model, lambda o, t: functional.cross_entropy(o, t).view(1, 1), batches)
    vector = torch.ones(H.shape[0], dtype=torch.float64)
    assert torch.equal(H @ vector, Hessian(model, functional.cross_entropy, batches) @ vector)
    assert repr(H) == "Hessian(Sequential, 38 parameters)"
