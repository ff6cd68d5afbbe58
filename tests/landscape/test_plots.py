"""Pictures: that they show the numbers they are given, and that nothing else needs matplotlib."""

import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt

from curvature_cases import case
from flatmin.errors import ArgumentTypeError, FlatminError
from flatmin.landscape import plot_radius
from flatmin.measures import RadiusSearch, find_rho, find_sigma

ROOT = Path(__file__).resolve().parents[2]
mpl.use("agg")


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


def search(rises=(0.01, 0.1, 1.0), *, kind="sigma", value=0.0316, tolerance=0.1, stderrs=None):
    rises = torch.tensor(rises, dtype=torch.float64)
    return RadiusSearch(
        kind=kind,
        value=value,
        stderr=0.0,
        grid=torch.logspace(-3, -1, len(rises), dtype=torch.float64),
        rises=rises,
        stderrs=torch.zeros_like(rises) if stderrs is None else torch.tensor(stderrs, dtype=torch.float64),
        clean_loss=1.0,
        tolerance=tolerance,
        num_evaluations=1,
    )


def lines(ax):
    return {line.get_label(): [list(map(float, line.get_data()[k])) for k in (0, 1)] for line in ax.get_lines()}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("find", [find_sigma, find_rho])
def test_shows_the_search(find):
    found = find(*case("gelu"))
    ax = plot_radius(found)
    curve = next(container for container in ax.containers if container.get_label().startswith(("mean rise", "rise")))
    radii, rises = curve[0].get_data()
    seen = found.rises > 0
    assert list(radii) == found.grid.tolist()
    assert list(rises[seen.numpy()]) == found.rises[seen].tolist()
    assert all(math.isnan(rise) for rise in rises[~seen.numpy()])  # a gap in the line
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    shown = lines(ax)
    assert shown[f"allowed: {found.tolerance:.3g}"][1] == [found.tolerance] * 2
    assert [[found.value], [found.tolerance]] in shown.values()
    assert ax.get_ylabel() == f"rise of the loss over {found.clean_loss:.4g}"
    assert ax.get_xlabel().endswith(", σ" if find is find_sigma else ", ρ")
    ax.figure.canvas.draw()


def test_bars_are_one_standard_error():
    ax = plot_radius(search(stderrs=(0.001, 0.02, 0.3)))
    (bars,) = ax.containers[0][2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx(pair) for pair in ([0.009, 0.011], [0.08, 0.12], [0.7, 1.3])]
    assert not plot_radius(search(kind="rho")).containers[0][2]


def test_leaves_the_search_as_it_is():
    found = search((-1.0, 0.1, math.inf))
    plot_radius(found)
    assert found.rises.tolist() == [-1.0, 0.1, math.inf]


def test_what_has_no_logarithm_stands_at_the_edges():
    ax = plot_radius(search((-1e-6, 0.0, 0.01, 1.0, math.inf), stderrs=(1e-6, 0.0, 0.0, 0.0, math.nan)))
    shown = lines(ax)
    assert shown["no rise"] == [pytest.approx([1e-3, 10**-2.5]), [0.0, 0.0]]
    assert shown["overflow"] == [pytest.approx([1e-1]), [1.0]]
    assert ax.containers[0][0].get_data()[1].tolist() == pytest.approx(
        [math.nan, math.nan, 0.01, 1.0, math.nan], nan_ok=True
    )
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("rises", "value"), [((0.0, -1.0, -2.0), 0.1), ((math.inf,) * 3, math.nan), ((1, 2, 3), math.nan)]
)
def test_without_an_answer_no_proposal_is_drawn(rises, value):
    ax = plot_radius(search(rises, value=value, stderrs=(math.nan,) * 3))
    assert not any(text.startswith("proposal") for text in legend(ax))
    ax.figure.canvas.draw()


def test_draws_on_given_axes():
    _, axes = plt.subplots(1, 2)
    assert plot_radius(search(), axes[1]) is axes[1]
    assert not axes[0].get_lines()
    assert plot_radius(search()).figure is not axes[1].figure


def test_refuses_what_is_no_search():
    with pytest.raises(ArgumentTypeError, match=r"search is 0.1, but what find_sigma or find_rho returned"):
        plot_radius(0.1)


def test_a_missing_matplotlib_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib.*pip install 'flatmin\[lab\]'") as caught:
        plot_radius(search())
    assert isinstance(caught.value, FlatminError)


def test_importing_the_library_imports_no_matplotlib():
    code = "import sys, flatmin, flatmin.landscape; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_one_file_of_the_library_knows_matplotlib():
    found = [
        f.name
        for f in (ROOT / "src" / "flatmin").rglob("*.py")
        if re.search(r"(import|from) matplotlib", f.read_text(encoding="utf-8"))
    ]
    assert found == ["plots.py"]


def test_the_function_keeps_its_name_from_the_module():
    module = importlib.import_module("flatmin.landscape.surface")
    from flatmin import landscape

    assert landscape.surface is module.surface
