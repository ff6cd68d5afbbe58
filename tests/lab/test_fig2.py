"""The reproduction of Figure 2: what it shows is what the comparisons found."""

from dataclasses import replace

import pytest

from flatmin_lab.recipes import registry
from flatmin_lab.recipes.nso2024.fig2 import fig2
from flatmin_lab.recipes.outcome import publish
from flatmin_lab.recipes.reproductions import REPRODUCTIONS


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(told):
    recipe = registry.gap_recipe
    with pytest.MonkeyPatch.context() as patch:
        quick = {"epochs": 3, "num_pairs": 10, "sigmas": (0.01, 0.02)}
        patch.setattr(registry, "gap_recipe", lambda name, size: replace(recipe(name, size), **quick))
        return fig2("toy", 0, lambda *step: told.append(step))


def test_the_tables_hold_every_point_and_every_network(found, told):
    points, networks = found.tables
    assert [row[:2] for row in points.rows] == [(f"mlp-{a}", s) for a in ("relu", "gelu") for s in (0.01, 0.02)]
    for _, _, gap, approximation, difference, _ in points.rows:
        assert difference == pytest.approx(100 * (gap - approximation) / gap)
    assert [row[:2] for row in networks.rows] == [("mlp-relu", "yes"), ("mlp-gelu", "no")]
    assert {step[0].partition(":")[0] for step in told} == {"mlp-relu", "mlp-gelu"}


def test_the_text_says_what_follows_for_each_network(found):
    assert "- `mlp-relu`: The noise meets kinks" in found.text
    assert "- `mlp-gelu`: The noise meets no kinks" in found.text


def test_everything_is_written(found, tmp_path):
    files = publish(found, tmp_path, title="nso.fig2")
    assert all((tmp_path / name).stat().st_size > 50 for name in files.values())
    assert list(found.series["gap-mlp-relu"]["sigma"]) == [0.01, 0.02]


def test_it_is_among_the_reproductions():
    assert REPRODUCTIONS["nso.fig2"].load() is fig2
