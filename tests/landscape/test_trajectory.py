"""Snapshots of training, bounded in number, and the plane nearest to them against numpy's singular vectors."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import case, everything, mlp
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.landscape import Trajectory, surface, trajectory_plane


def flat(state, model):
    return torch.cat([state[name].flatten() for name, p in model.named_parameters() if p.requires_grad]).numpy()


def walk(model, steps, seed=0, **options):
    """A trajectory of random steps that shrink, so that its directions differ in weight."""
    g = torch.Generator().manual_seed(seed)
    trajectory = Trajectory(model, **options)
    trajectory.record()
    for step in range(steps):
        with torch.no_grad():
            for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
                tensor.add_(torch.rand(tensor.shape, generator=g, dtype=tensor.dtype) / (step + 1))
        trajectory.record()
    return trajectory


@pytest.mark.parametrize(("capacity", "calls"), [(2, 1), (2, 9), (4, 4), (5, 5), (5, 6), (5, 97), (100, 30)])
def test_snapshots_lie_evenly_and_are_never_too_many(capacity, calls):
    model = nn.Linear(1, 1, bias=False)
    trajectory = Trajectory(model, capacity=capacity)
    for call in range(calls):
        model.weight.data.fill_(float(call))
        trajectory.record()
        assert len(trajectory) <= capacity
    gaps = {b - a for a, b in zip(trajectory.steps, trajectory.steps[1:])}
    assert len(gaps) <= 1
    assert trajectory.steps[0] == 0
    assert trajectory.steps[-1] > calls - 1 - max(gaps | {1})
    assert [float(state["weight"]) for state in trajectory] == trajectory.steps
    assert f"{len(trajectory)} snapshots, steps 0 to {trajectory.steps[-1]}" in repr(trajectory)


def test_a_snapshot_is_a_copy_and_taking_it_leaves_no_trace():
    model, _, _ = case("conv, batch-norm, dropout")
    model.train()
    trajectory, before = Trajectory(model), everything(model)
    trajectory.record()
    assert everything(model) == before
    kept = trajectory[0]["1.running_mean"].clone()
    model[1].running_mean.add_(1)
    assert torch.equal(trajectory[0]["1.running_mean"], kept)
    assert not any(tensor.requires_grad for tensor in trajectory[0].values())
    assert "1.num_batches_tracked" not in trajectory[0]


@pytest.mark.parametrize("name", ["tanh", "tied", "frozen", "conv, batch-norm, dropout"])
def test_the_plane_is_that_of_the_singular_vectors(name, monkeypatch):
    monkeypatch.setattr("flatmin.landscape.trajectory._COLUMNS", 20)  # in pieces
    model = case(name).model
    first, second = walk(model, 6), walk(model, 4, seed=1)
    plane = trajectory_plane(model, first, second)
    weights = flat({name: p.detach() for name, p in model.named_parameters()}, model)
    rows = np.stack([flat(s, model) for t in (first, second) for s in t]) - weights
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    basis = np.stack([flat(direction, model) for direction in plane.directions])
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-10)
    np.testing.assert_allclose(np.abs((basis * vectors[:2]).sum(1)), 1, atol=1e-8)
    np.testing.assert_allclose(plane.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-10)
    points = torch.cat([path.points for path in plane.paths]).numpy()
    np.testing.assert_allclose(points, rows @ basis.T, atol=1e-9)
    distances = torch.cat([path.distances for path in plane.paths]).numpy()
    np.testing.assert_allclose(distances, np.linalg.norm(rows - points @ basis, axis=1), atol=1e-6)
    share = 1 - (distances**2).sum() / (rows**2).sum()  # what is not told as explained is told as distance
    assert float(plane.explained.sum()) == pytest.approx(share)
    assert [len(path.steps) for path in plane.paths] == [7, 5]
    assert np.abs(points[-1]).max() < 1e-9  # the model's own weights


def test_buffers_go_along_as_they_went_with_the_weights():
    model = case("conv, batch-norm, dropout").model
    trajectory = Trajectory(model)
    starts = {n: t.detach().clone() for n, t in model.state_dict().items() if t.is_floating_point()}
    for a, b in ((3.0, 0.0), (2.0, 1.0), (0.0, 0.5), (0.0, 0.0)):  # all in one plane, with its buffers
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in starts:
                    tensor.copy_(starts[name] * (1 + a) + b)
        trajectory.record()
    plane = trajectory_plane(model, trajectory)
    assert plane.paths[0].distances.max() < 1e-6
    for state, (a, b) in zip(trajectory, plane.paths[0].points.tolist()):
        for name, tensor in model.state_dict().items():
            if name in starts:
                there = tensor + a * plane.directions[0][name] + b * plane.directions[1][name]
                torch.testing.assert_close(there, state[name], rtol=1e-9, atol=1e-9)


def test_the_surface_over_the_plane_has_the_losses_of_the_snapshots_that_lie_in_it():
    model, loss_fn, batches = case("gelu")
    trajectory = walk(model, 2)  # with the weights at the end, two more points are always in the plane
    plane = trajectory_plane(model, trajectory)
    assert plane.paths[0].distances.max() < 1e-6
    for state, (a, b) in zip(trajectory, plane.paths[0].points.tolist()):
        there = mlp(nn.GELU).double()
        there.load_state_dict(state)
        expected = surface(there, loss_fn, batches, coordinates=[0.0], directions=plane.directions[:1]).loss
        found = surface(model, loss_fn, batches, coordinates=([a], [b]), directions=plane.directions).loss
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_coordinates_hold_every_path_with_room():
    model = case("tanh").model
    plane = trajectory_plane(model, walk(model, 5), walk(model, 3, seed=3))
    points = torch.cat([path.points for path in plane.paths])
    for axis, values in zip(plane.around(9, margin=0.1), points.T):
        extent = float(values.max() - values.min())
        assert len(axis) == 9
        assert float(axis[0]) <= float(values.min()) - 0.099 * extent
        assert float(axis[-1]) >= float(values.max()) + 0.099 * extent
    grid = plane.around(3)
    plane = surface(
        model, functional.cross_entropy, case("tanh").batches, coordinates=grid, directions=plane.directions
    )
    assert plane.lengths == pytest.approx((1.0, 1.0))


def test_what_is_no_plane_is_refused():
    model = mlp()
    with pytest.raises(ArgumentError, match=r"no trajectory with snapshots.*record"):
        trajectory_plane(model)
    with pytest.raises(ArgumentError, match="no trajectory with snapshots"):
        trajectory_plane(model, Trajectory(model))
    with pytest.raises(ArgumentError, match="the 1 snapshots lie on one line"):
        trajectory_plane(model, walk(model, 0))
    with pytest.raises(ArgumentError, match="the 2 snapshots lie on one line"):
        trajectory_plane(model, walk(model, 1))
    with pytest.raises(ArgumentError, match=r"'a\.weight' is missing in the other"):
        trajectory_plane(model, walk(nn.Linear(2, 2), 3))
    with pytest.raises(ArgumentError, match="capacity is 1"):
        Trajectory(model, capacity=1)
    with pytest.raises(ArgumentTypeError, match="model is a float"):
        Trajectory(1.0)
    plane = trajectory_plane(model, walk(model, 4))
    with pytest.raises(ArgumentError, match="points is 1"):
        plane.around(1)
    with pytest.raises(ArgumentError, match="margin is -1"):
        plane.around(margin=-1)
