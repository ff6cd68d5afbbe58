"""The loss on lines and planes."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import case, data, mean_loss, mlp
from flatmin.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from flatmin.landscape import random_directions, surface

GRID = torch.linspace(-1, 1, 5, dtype=torch.float64)


@pytest.mark.parametrize("name", ["gelu", "ragged", "tied", "frozen", "mappings", "conv, batch-norm, dropout"])
def test_the_surface_is_the_loss_at_displaced_weights(name):
    model, loss_fn, batches = case(name)
    u, v = random_directions(model, seed=3)
    plane = surface(model, loss_fn, batches, coordinates=GRID, seed=3)
    model.eval()
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    for i, a in enumerate(GRID):
        for j, b in enumerate(GRID):
            point = {n: w + a * u[n] + b * v[n] for n, w in weights.items()}
            expected = mean_loss(model, loss_fn, batches, point).item()
            assert float(plane.loss[i, j]) == pytest.approx(expected, rel=1e-12)
    assert (plane.loss.dtype, plane.loss.shape, plane.coordinates.tolist()) == (torch.float64, (5, 5), GRID.tolist())


def test_a_line_between_two_models():
    model, loss_fn, batches = case("gelu")
    other = mlp(nn.GELU).double()
    way = {n: q.detach() - p.detach() for (n, p), q in zip(model.named_parameters(), other.parameters(), strict=True)}
    line = surface(model, loss_fn, batches, coordinates=[0.0, 0.5, 1.0], directions=[way])
    assert line.loss.shape == (3,)
    for at, weights in ((0, model), (2, other)):
        expected = mean_loss(weights, loss_fn, batches, dict(weights.named_parameters())).item()
        assert float(line.loss[at]) == pytest.approx(expected)
    assert repr(line).startswith("Surface(3 points, coordinates 0 to 1, lowest loss ")


def test_a_direction_may_leave_parameters_alone():
    model, loss_fn, batches = case("tanh")
    line = surface(model, loss_fn, batches, coordinates=GRID, directions=[{"b.bias": torch.ones(3)}])
    torch.testing.assert_close(line.loss, line.loss[2].expand(5))  # softmax does not see a common shift


def test_overflow_is_part_of_the_picture():
    model, _, batches = case("tanh")
    line = surface(model, lambda o, _: o.sum().mul(1e3).exp(), batches, coordinates=[0.0, 1e3], directions=[
        {"b.bias": torch.ones(3)}
    ])  # fmt: skip
    assert line.loss[1] == torch.inf


def test_costs_little_more_than_its_forward_passes():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    x, y = torch.randn(200, 64, generator=torch.Generator()), torch.arange(200) % 10

    def passes():
        with torch.no_grad():
            return [functional.cross_entropy(model(x), y).item() for _ in range(49)]

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    grid = torch.linspace(-1, 1, 7)
    rounds = [
        (seconds(passes), seconds(lambda: surface(model, functional.cross_entropy, [(x, y)], coordinates=grid)))
        for _ in range(7)
    ]
    bare, whole = map(min, zip(*rounds, strict=True))
    assert whole < 5 * bare  # 1.8 on an idle machine


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"coordinates": []}, ArgumentError, r"coordinates has shape \(0,\).*linspace"),
        ({"coordinates": torch.ones(1, 1)}, ArgumentError, r"shape \(1, 1\)"),
        ({"coordinates": [[1.0]]}, ArgumentError, "1 grids of coordinates, but the number of directions is 2"),
        ({"coordinates": [float("nan")]}, ArgumentError, "finite numbers"),
        ({"directions": []}, ArgumentError, "there are 0 directions, but a line has 1 and a plane 2"),
        ({"directions": [torch.ones(38)]}, ArgumentTypeError, "a direction is a Tensor.*Layout.split"),
        ({"directions": [{"c": torch.ones(3)}]}, ArgumentError, "'c' is the name of no parameter or buffer"),
        ({"directions": [{"b.bias": torch.ones(4)}]}, ArgumentError, r"'b.bias' has shape \(4,\)"),
        ({"seed": -1}, ArgumentError, "seed is -1"),
        ({"mode": "no"}, ArgumentError, "mode is 'no'"),
    ],
)
def test_messages(changes, error, message):
    with pytest.raises(error, match=message):
        surface(mlp().double(), functional.cross_entropy, data(), **({"coordinates": GRID} | changes))


def test_weights_that_are_not_finite():
    model = mlp().double()
    model.a.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'a.bias' holds NaN"):
        surface(model, functional.cross_entropy, data(), coordinates=GRID)


def test_autocast_around_a_surface_does_not_flatten_it():
    model, batches = nn.Linear(4, 3), [(torch.ones(5, 4), torch.zeros(5, dtype=torch.long))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plane = surface(model, nn.functional.cross_entropy, batches, coordinates=[-1.0, 0.0, 1.0])
    assert len(set(plane.loss.flatten().tolist())) > 5
