"""Pictures of lines, planes and paths: that they show the numbers they are given, several on one scale."""

import math

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm, Normalize

from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.landscape import Surface, common_levels, plot_line, plot_plane, plot_trajectory
from flatmin.landscape.trajectory import TrajectoryPath, TrajectoryPlane

mpl.use("agg")
X = torch.linspace(-1, 1, 5, dtype=torch.float64)
Y = torch.linspace(0, 3, 4, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def line(loss=None, length=1.0):
    return Surface(loss=X**2 if loss is None else loss, axes=(X,), directions=({},), lengths=(length,))


def plane(loss=None, lengths=(1.0, 1.0)):
    loss = X[:, None] ** 2 + Y if loss is None else loss
    return Surface(loss=loss, axes=(X, Y), directions=({}, {}), lengths=lengths)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_levels_hold_every_finite_loss_of_all():
    one, other = line(torch.tensor([1.0, 2.0, math.inf, math.nan, 3.0])), plane(torch.full((5, 4), 19.0))
    assert common_levels(one, other, count=10) == pytest.approx(range(1, 20, 2))
    steep = common_levels(one, plane(torch.full((5, 4), 1000.0)), count=4)
    assert steep == pytest.approx((1, 10, 100, 1000))
    assert (steep[0], steep[-1]) == (1.0, 1000.0)  # and not next to them
    assert common_levels(line(torch.full((5,), 2.0)), count=3) == (1.5, 2.0, 2.5)
    below = common_levels(line(torch.tensor([-1.0, 0.0, 0.0, 0.0, 99.0])), count=3)
    assert below == (-1.0, 49.0, 99.0)


@pytest.mark.parametrize("surfaces", [(), (line(torch.full((5,), math.nan)),)])
def test_without_a_finite_loss_there_is_no_scale(surfaces):
    with pytest.raises(ArgumentError, match="no loss is finite"):
        common_levels(*surfaces)


def test_lines_are_drawn_as_they_are_on_one_axis():
    steep = line(torch.tensor([math.inf, 4.0, 2.0, math.nan, 8.0], dtype=torch.float64))
    ax = plot_line([line(1 + X**2), steep], labels=["a", "b"])
    first, second, _ = ax.get_lines()
    assert list(first.get_ydata()) == (1 + X**2).tolist()
    assert list(second.get_ydata()) == pytest.approx([math.nan, 4, 2, math.nan, 8], nan_ok=True)
    assert list(second.get_xdata()) == X.tolist()
    assert first.get_linestyle() != second.get_linestyle()
    assert texts(ax) == ["a", "b"]
    assert (ax.get_yscale(), ax.get_xlabel()) == ("linear", "distance along the direction")
    assert math.isinf(steep.loss[0])  # left as it was
    ax.figure.canvas.draw()


def test_a_line_alone_needs_no_legend_and_tells_its_unit():
    ax = plot_line(line(10 ** (4 * X), length=2.5))
    assert ax.get_legend() is None
    assert (ax.get_yscale(), ax.get_xlabel()) == ("log", "multiples of the direction (length 2.5)")
    _, axes = plt.subplots(1, 2)
    assert plot_line(line(), axes[1]) is axes[1]
    both = plot_line([line(length=2.5), line(length=3.0)])
    assert both.get_xlabel() == "multiples of the direction (length 2.5 and 3)"


def test_a_plane_has_its_first_direction_along_the_horizontal():
    ax = plot_plane(plane())
    filled = ax.collections[0]
    assert (filled.get_datalim(ax.transData).x0, filled.get_datalim(ax.transData).x1) == (-1, 1)
    assert (filled.get_datalim(ax.transData).y0, filled.get_datalim(ax.transData).y1) == (0, 3)
    # The loss is Y + X²: a contour of the lines runs through (0, level) and (1, level - 1).
    lines = ax.collections[1]
    for level, path in zip(lines.levels, lines.get_paths()):
        at_zero = [y for x, y in path.vertices if abs(x) < 1e-9]
        at_one = [y for x, y in path.vertices if abs(x - 1) < 1e-9]
        if at_zero and at_one and 1 < level < 3:
            assert (at_zero[0], at_one[0]) == (pytest.approx(level), pytest.approx(level - 1))
    assert ax.get_aspect() == 1.0
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "distance along the first direction",
        "distance along the second direction",
    )
    ax.figure.canvas.draw()


def test_planes_on_given_levels_have_one_scale_of_colours():
    flat, steep = plane(1 + plane().loss), plane(1 + 100 * plane().loss)
    levels = common_levels(flat, steep)
    norms = [plot_plane(p, levels=levels).collections[0].norm for p in (flat, steep)]
    assert all(isinstance(norm, LogNorm) for norm in norms)
    assert {(norm.vmin, norm.vmax) for norm in norms} == {(1.0, 401.0)}
    alone = plot_plane(flat).collections[0].norm
    assert isinstance(alone, Normalize)
    assert not isinstance(alone, LogNorm)


def test_losses_beyond_the_levels_have_the_colours_of_the_ends():
    for levels, extend in (((1.0, 2.0), "both"), ((0.0, 2.0), "max"), ((1.0, 4.0), "min"), ((0.0, 4.0), "neither")):
        assert plot_plane(plane(), levels=levels).collections[0].extend == extend


def test_directions_of_unlike_lengths_are_no_map():
    ax = plot_plane(plane(lengths=(2.0, 3.0)))
    assert ax.get_aspect() == "auto"
    assert ax.get_ylabel() == "multiples of the second direction (length 3)"


def test_what_is_not_finite_stays_blank():
    loss = plane().loss.clone()
    loss[0, 0], loss[4, 3] = math.inf, math.nan
    ax = plot_plane(plane(loss))
    inside = [path.contains_point((-0.9, 0.05)) for path in ax.collections[0].get_paths()]
    assert not any(inside)
    ax.figure.canvas.draw()


def paths():
    points = torch.tensor([[3.0, 1.0], [1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    one = TrajectoryPath(points=points, distances=torch.tensor([0.5, 0.25, 0.0]), steps=(0, 1, 2))
    other = TrajectoryPath(points=-points, distances=torch.tensor([0.1, 0.1, 0.0]), steps=(0, 1, 2))
    return TrajectoryPlane(directions=({}, {}), explained=torch.tensor([0.75, 0.2]), paths=(one, other))


def test_paths_are_drawn_with_what_the_plane_does_not_hold():
    ax = plot_trajectory(paths(), labels=["SGD", "NSO"])
    assert texts(ax) == ["SGD, off the plane by up to 0.5", "NSO, off the plane by up to 0.1"]
    first, second = ax.collections
    assert first.get_offsets().tolist() == [[3, 1], [1, 2], [0, 0]]
    assert second.get_offsets().tolist() == [[-3, -1], [-1, -2], [0, 0]]
    assert first.get_sizes().tolist() == pytest.approx([72, 42, 12])
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "first principal direction, distance (75.0 %)",
        "second, distance (20.0 %)",
    )
    over = plot_trajectory(paths(), plot_plane(plane()))
    over.figure.canvas.draw()
    assert texts(over)[0] == "off the plane by up to 0.5"


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plot_line(1.5), ArgumentTypeError, "a float, but what surface returned"),
        (lambda: plot_line([]), ArgumentError, "no loss is finite"),
        (lambda: plot_line([1.5]), ArgumentTypeError, r"a float, but what surface returned.*plot_line\("),
        (lambda: plot_line(plane()), ArgumentError, r"1 direction\(s\), and this one has 2. Take plot_plane"),
        (lambda: plot_plane(line()), ArgumentError, r"2 direction\(s\), and this one has 1. Take plot_line"),
        (lambda: plot_plane(plane(torch.ones(5, 1))), ArgumentError, r"\(5, 1\) points, but contours need two"),
        (lambda: plot_line(line(), labels=[]), ArgumentError, "there are 0 labels, but 1 lines"),
        (lambda: plot_trajectory(paths(), labels=["a"]), ArgumentError, "there are 1 labels, but 2 paths"),
        (lambda: plot_trajectory(plane()), ArgumentTypeError, "a Surface, but what trajectory_plane returned"),
        (lambda: common_levels(line(), count=1), ArgumentError, "count is 1"),
    ],
)
def test_messages(draw, error, message):
    with pytest.raises(error, match=message):
        draw()
