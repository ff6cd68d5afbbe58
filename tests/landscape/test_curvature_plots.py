"""Pictures of curvature: that they show the numbers they are given."""

import math

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt

from curvature_cases import case
from flatmin.curvature import Hessian, trace
from flatmin.curvature.layerwise import Layer, LayerwiseResult, layerwise
from flatmin.curvature.results import TraceEstimate, student_quantile
from flatmin.curvature.spectrum import SpectralDensity
from flatmin.errors import ArgumentError, ArgumentTypeError
from flatmin.landscape.curvature_plots import plot_density, plot_layers, plot_trace

mpl.use("agg")


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def estimate(draws, *, known=0.0):
    draws = torch.as_tensor(draws, dtype=torch.float64)
    stderr = float(draws.std() / math.sqrt(len(draws)))
    return TraceEstimate(value=float(draws.mean()) + known, stderr=stderr, samples=draws, num_matvecs=len(draws))


def draws(n=50):
    return 10 + torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("known", [0.0, 7.0])
def test_a_trace_converges_with_students_band(known):
    ax = plot_trace(estimate(draws(), known=known))
    line = ax.get_lines()[0]
    x, y = line.get_data()
    assert list(x) == list(range(3, 51))
    assert y[0] == pytest.approx(float(draws()[:3].mean()) + known)
    assert y[-1] == pytest.approx(float(draws().mean()) + known)
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for n in (3, 20, 50):
        heights = corners[corners[:, 0] == n][:, 1]
        first = draws()[:n]
        half = student_quantile(0.975, n - 1) * float(first.std()) / math.sqrt(n)
        assert heights.max() == pytest.approx(float(first.mean()) + known + half)
        assert heights.min() == pytest.approx(float(first.mean()) + known - half)
    assert ax.get_lines()[1].get_ydata()[0] == pytest.approx(float(draws().mean()) + known)
    assert legend(ax)[0] == "mean so far, 95 % band"
    ax.figure.canvas.draw()


def test_a_confidence_widens_the_band():
    narrow, wide = (plot_trace(estimate(draws()), confidence=c).collections[0].get_paths()[0] for c in (0.5, 0.99))
    assert wide.get_extents().height > 2 * narrow.get_extents().height
    with pytest.raises(ArgumentError, match="confidence is 2"):
        plot_trace(estimate(draws()), confidence=2)


def test_draws_that_are_all_alike():
    plot_trace(estimate([3.0, 3.0, 3.0, 3.0])).figure.canvas.draw()


def test_a_trace_of_a_hessian():
    ax = plot_trace(trace(Hessian(*case("tanh")), num_matvecs=20, method="hutchinson"))
    assert len(ax.get_lines()[0].get_xdata()) == 18


@pytest.mark.parametrize("samples", [None, torch.ones(2), torch.ones(3)])
def test_a_trace_without_draws_is_refused(samples):
    with pytest.raises(ArgumentError, match=r"the trace 2 ± 0 has no draws to show, being exact or live"):
        plot_trace(TraceEstimate(value=2.0, stderr=0.0, num_matvecs=0, samples=samples))


def test_what_is_no_trace_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"estimate is 1.5, but a trace is needed"):
        plot_trace(1.5)


def layers(count=4, error=0.01):
    rows = [
        Layer(
            name=f"l{i}",
            parameters=(f"l{i}",),
            size=1,
            value=i + 1.0,
            stderr=0.1,
            share=(i + 1) / 10,
            share_stderr=error,
        )
        for i in range(count)
    ]
    return LayerwiseResult(quantity="trace", layers=tuple(rows), num_matvecs=1)


def labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_shares_are_bars_in_the_order_of_the_network():
    ax = plot_layers(layers())
    assert labels(ax) == ["l0", "l1", "l2", "l3"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([10, 20, 30, 40])
    errors = next(c for c in ax.containers if hasattr(c, "has_xerr"))
    ends = [segment[:, 0].tolist() for segment in errors[2][0].get_segments()]
    assert ends == [pytest.approx([10 * i - 1, 10 * i + 1]) for i in (1, 2, 3, 4)]
    bottom, top = ax.get_ylim()
    assert bottom > top  # the input is at the top
    ax.figure.canvas.draw()


def test_many_layers_leave_the_largest_and_the_sum_of_the_rest():
    ax = plot_layers(layers(), most=2)
    assert labels(ax) == ["l2", "l3"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([30, 40])
    assert ax.get_xlabel() == "share of the trace (%)\n2 others have 30 % together"


def test_long_names_leave_room_for_the_bars():
    name = "base_model.model.roberta.encoder.layer.11.attention.self.query.lora_A.default"
    rows = [Layer(name=name, parameters=(), size=1, value=1.0, stderr=0.0, share=1.0, share_stderr=0.0)]
    ax = plot_layers(LayerwiseResult(quantity="trace", layers=tuple(rows), num_matvecs=1))
    ax.figure.canvas.draw()  # matplotlib would warn of axes without room
    assert labels(ax) == ["base_model.mode…ion.self.query.lora_A.default"]


def test_exact_shares_have_no_bars_of_error():
    assert len(plot_layers(layers(error=0.0)).containers) == 1
    found = layerwise(trace, Hessian(*case("relu")))
    ax = plot_layers(found)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([100 * layer.share for layer in found])


def test_given_axes_are_drawn_on():
    _, axes = plt.subplots(1, 2)
    assert plot_layers(layers(), axes[0]) is axes[0]
    assert plot_trace(estimate(draws()), axes[1]) is axes[1]


def test_layers_without_shares_are_refused():
    rows = [Layer(name="a", parameters=("a",), size=1, value=1.0, stderr=0.1)]
    with pytest.raises(ArgumentError, match="layers of 'top_eigenvalues' do not add up to a whole"):
        plot_layers(LayerwiseResult(quantity="top_eigenvalues", layers=tuple(rows), num_matvecs=1))
    with pytest.raises(ArgumentTypeError, match="what layerwise"):
        plot_layers([1.0])


def density(outliers=(5.0, 8.0), d=100):
    """Two probes that say nearly the same of a bulk around 0 and 1."""
    nodes = torch.tensor([[0.0, 1.0], [0.0, 1.1]], dtype=torch.float64)
    rest = (d - len(outliers)) / d
    weights = rest * torch.tensor([[0.9, 0.1], [0.8, 0.2]], dtype=torch.float64)
    known = torch.tensor(outliers, dtype=torch.float64)
    return SpectralDensity(nodes=nodes, weights=weights, outliers=known, dimension=d, num_matvecs=4)


def test_the_area_under_the_density_is_the_number_of_eigenvalues():
    ax = plot_density(density(), width=0.1)
    x, y = (torch.as_tensor(values, dtype=torch.float64) for values in ax.get_lines()[0].get_data())
    y = y.nan_to_num()
    assert float(torch.trapezoid(y[x < 3], x[x < 3])) == pytest.approx(98, rel=1e-3)
    assert float(torch.trapezoid(y[x > 3], x[x > 3])) == pytest.approx(2, rel=0.05)  # less what lies below the axis
    assert ax.get_yscale() == "log"
    assert legend(ax) == ["density, smoothed by 0.1", "2 known eigenvalues", "95 % band"]
    ax.figure.canvas.draw()


def test_known_eigenvalues_are_marked_where_they_are():
    ax = plot_density(density(), width=0.1)
    assert list(ax.get_lines()[1].get_xdata()) == [5.0, 8.0]
    single = 1 / (math.sqrt(2 * math.pi) * 0.1)
    assert ax.get_ylim()[0] == pytest.approx(single / 10)
    x, y = ax.get_lines()[0].get_data()
    assert max(height for place, height in zip(x, y) if 7.9 < place < 8.1) == pytest.approx(single, rel=1e-3)
    assert all(math.isnan(height) for place, height in zip(x, y) if 6 < place < 7)  # a gap, and no line


@pytest.mark.parametrize(("outliers", "words"), [((), 2), ((5.0,), 3)])
def test_few_known_eigenvalues(outliers, words):
    ax = plot_density(density(outliers))
    assert len(legend(ax)) == words
    assert ("a known eigenvalue" in legend(ax)) == bool(outliers)


def test_the_band_holds_the_curve():
    ax = plot_density(density(), width=0.1)
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    x, y = ax.get_lines()[0].get_data()
    for place, height in zip(x[::50], y[::50]):
        if not math.isnan(height):
            around = corners[corners[:, 0] == place][:, 1]
            assert around.min() <= height <= around.max()


def test_what_is_no_density_is_refused():
    with pytest.raises(ArgumentTypeError, match="what spectral_density"):
        plot_density([1.0])
    with pytest.raises(ArgumentError, match="width is 0"):
        plot_density(density(), width=0.0)
