"""Directions to look along: random ones of the filters' lengths, eigenvectors, and the way to another solution."""

import math

import pytest
import torch
from torch import nn

from curvature_cases import case, dense_hessian, mean_loss, mlp
from flatmin.curvature import EigenPairs, Hessian, top_eigenvalues
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.landscape import (
    difference,
    eigenvector_directions,
    filter_normalized,
    random_directions,
    surface,
    unit,
)
from flatmin.landscape.directions import length_of

GRID = torch.linspace(-1, 1, 5, dtype=torch.float64)


def test_filters_have_the_length_of_the_weights():
    model = case("conv, batch-norm, dropout").model
    for direction in random_directions(model, 3):
        assert list(direction) == [name for name, _ in model.named_parameters()]
        for name, weight in model.named_parameters():
            if weight.dim() < 2:
                assert not direction[name].any()
            else:
                lengths = direction[name].flatten(1).norm(dim=1)
                torch.testing.assert_close(lengths, weight.detach().flatten(1).norm(dim=1))


def test_directions_are_random_and_keyed_by_their_number():
    model = mlp()
    model.b.weight.data[1] = 0.0  # a dead filter
    first, second = random_directions(model, 2, seed=4)
    assert torch.equal(random_directions(model, 1, seed=4)[0]["a.weight"], first["a.weight"])
    assert not torch.equal(first["a.weight"], second["a.weight"])
    assert not torch.equal(random_directions(model, 1, seed=5)[0]["a.weight"], first["a.weight"])
    assert not first["b.weight"][1].any()
    assert first["b.weight"].isfinite().all()


def test_of_directions_there_is_at_least_one():
    for call in (random_directions, lambda model, n: eigenvector_directions(Hessian(*case("tanh")), n)):
        with pytest.raises(ArgumentError, match="num_directions is 0"):
            call(mlp(), 0)
    with pytest.raises(ArgumentError, match="no parameter that requires gradients"):
        random_directions(mlp().requires_grad_(requires_grad=False))


def test_scaling_a_relu_layer_up_and_the_next_one_down_leaves_the_picture():
    model, loss_fn, batches = case("relu")
    before = surface(model, loss_fn, batches, coordinates=GRID, seed=1)
    fixed = {"coordinates": GRID, "directions": random_directions(model, 1)}
    along = surface(model, loss_fn, batches, **fixed).loss
    with torch.no_grad():
        for tensor, factor in ((model.a.weight, 7.0), (model.a.bias, 7.0), (model.b.weight, 1 / 7.0)):
            tensor.mul_(factor)
    after = surface(model, loss_fn, batches, coordinates=GRID, seed=1)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-12, atol=0)
    assert not torch.allclose(surface(model, loss_fn, batches, **fixed).loss, along, rtol=1e-2)


def test_scaling_single_filters_before_normalisation_leaves_the_picture():
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    model[1].eps = 0.0
    before = surface(model, loss_fn, batches, coordinates=GRID, seed=1)
    factors = torch.tensor([5.0, 0.3], dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(factors.view(2, 1, 1, 1))
        model[0].bias.mul_(factors)
        model[1].running_mean.mul_(factors)
        model[1].running_var.mul_(factors**2)
    after = surface(model, loss_fn, batches, coordinates=GRID, seed=1)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-12, atol=0)


def test_any_direction_gets_the_filters_lengths():
    model = mlp().double()
    given = {"b.weight": torch.ones(3, 5), "b.bias": torch.ones(3)}
    found = filter_normalized(given, model)
    assert found.keys() == given.keys()
    torch.testing.assert_close(found["b.weight"].norm(dim=1), model.b.weight.detach().norm(dim=1))
    torch.testing.assert_close(found["b.weight"][:, 0], found["b.weight"][:, 4])
    assert not found["b.bias"].any()


@pytest.mark.parametrize("name", ["tanh", "regression", "tied"])
def test_eigenvectors_are_those_of_the_dense_hessian_facing_up(name):
    H, model = Hessian(*case(name)), case(name).model
    values, vectors = torch.linalg.eigh(dense_hessian(*case(name)))
    order = values.abs().argsort(descending=True)[:2]
    for direction, index in zip(eigenvector_directions(H), order.tolist(), strict=True):
        assert list(direction) == [n for n, p in model.named_parameters() if p.requires_grad]
        flat = torch.cat([t.flatten() for t in direction.values()])
        assert abs(float(flat @ vectors[:, index])) == pytest.approx(1, abs=1e-4)
        assert flat[flat.abs().argmax()] > 0


def test_the_second_derivative_along_an_eigenvector_is_the_eigenvalue():
    model, loss_fn, batches = case("gelu")
    pairs = top_eigenvalues(Hessian(model, loss_fn, batches), k=2, tol=1e-8)
    h = 1e-3
    for value, direction in zip(pairs.values.tolist(), eigenvector_directions(pairs), strict=True):
        low, middle, high = surface(model, loss_fn, batches, coordinates=[-h, 0.0, h], directions=[direction]).loss
        assert float(low + high - 2 * middle) / h**2 == pytest.approx(value, rel=1e-5)


def test_eigenvectors_with_the_lengths_of_filters():
    model, loss_fn, batches = case("tanh")
    H = Hessian(model, loss_fn, batches)
    plain, lent = (eigenvector_directions(H, 1, like=like)[0] for like in (None, model))
    torch.testing.assert_close(lent["a.weight"].norm(dim=1), model.a.weight.detach().norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(plain["a.weight"], lent["a.weight"], dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_too_few_eigenvectors_and_ones_without_names():
    H = Hessian(*case("tanh"))
    with pytest.raises(ArgumentError, match=r"there are 1 eigenvectors, but num_directions is 2.*k=2"):
        eigenvector_directions(top_eigenvalues(H, k=1))
    nameless = EigenPairs(
        values=torch.ones(1), vectors=torch.ones(1, 1), residuals=torch.zeros(1), errors=torch.zeros(1), num_matvecs=1
    )
    with pytest.raises(ArgumentError, match="no named parameters"):
        eigenvector_directions(nameless, 1)


@pytest.mark.parametrize("as_state", [False, True])
def test_a_step_along_the_way_arrives_at_the_other_solution_with_its_statistics(as_state):
    model, loss_fn, batches = case("conv, batch-norm, dropout")
    other = case("conv, batch-norm, dropout").model
    with torch.no_grad():
        for number, tensor in enumerate([*other.parameters(), other[1].running_mean, other[1].running_var]):
            tensor.mul_(1 + 0.1 * number)
    way = difference(model, other.state_dict() if as_state else other)
    assert {"1.running_mean", "1.running_var"} <= way.keys()
    line = surface(model, loss_fn, batches, coordinates=[0.0, 1.0], directions=[way])
    for at, end in ((0, model), (1, other)):
        end.eval()
        expected = mean_loss(end, loss_fn, batches, dict(end.named_parameters())).item()
        assert float(line.loss[at]) == pytest.approx(expected, rel=1e-12)
    apart = [(p - q).detach().flatten() for p, q in zip(model.parameters(), other.parameters(), strict=True)]
    assert line.lengths[0] == pytest.approx(float(torch.cat(apart).norm()))  # of parameters alone


def test_the_way_asks_for_no_caches():
    class Cached(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("cache", torch.ones(3), persistent=False)

    assert difference(Cached(), Cached().state_dict()).keys() == {"weight", "bias"}


def test_directions_of_length_one():
    direction = unit({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])})
    assert direction["b"].item() == pytest.approx(0.8)
    assert length_of(direction) == pytest.approx(1)
    assert length_of(direction, ["a", "c"]) == pytest.approx(0.6)
    model = mlp()
    with pytest.raises(ArgumentError, match=r"length 0.0, so it leads nowhere. Are the two models the same"):
        unit(difference(model, model))
    with pytest.raises(ArgumentError, match="length inf"):
        unit({"a": torch.tensor([math.inf])})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: difference(m, {"a.weight": torch.ones(5, 3)}), ArgumentError, "'a.bias' is missing in the other"),
        (lambda m: difference(m, nn.Linear(3, 5)), ArgumentError, "'a.weight' is missing.*network of another kind"),
        (lambda m: difference(m, m.state_dict() | {"a.bias": 1}), ArgumentError, r"shape \(\) and not \(5,\)"),
        (lambda m: difference(m, 1.0), ArgumentTypeError, "other is a float, but a model or its state dict"),
        (lambda m: filter_normalized({}, m), ArgumentError, "names no tensor"),
        (lambda m: filter_normalized({"c": torch.ones(1)}, m), ArgumentError, "'c' is the name of no parameter"),
        (lambda m: filter_normalized([1.0], m), ArgumentTypeError, "a direction is a list"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call(mlp())
