"""Studies of arms: their rows, every number made again from the stored runs, and shares with Fieller's interval."""

import itertools
import json
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from cheap_curvature import cheap_curvature
from flatmin.errors import ArgumentError, DataError
from flatmin_lab import job
from flatmin_lab.errors import LabError
from flatmin_lab.recipes.nso2024 import pairing
from flatmin_lab.recipes.nso2024.shares import kept_share
from flatmin_lab.recipes.studies import Row, Scale, require, study
from flatmin_lab.recipes.study_figures import Curve, Panel, curves_figure, rows_figure
from flatmin_lab.recipes.study_tables import cells, metric_table, runs_series, scaled
from flatmin_lab.recipes.study_text import difference_text, diverged_text, heading, mean_text, setup_text, tuning_text
from flatmin_lab.reproduction import reproduce
from flatmin_lab.spec import Arm, Changes

SCALE = Scale("digits-tiny", seeds=3, budget=12)
FAST, DOOMED = Changes(learning_rate=0.1), Changes(learning_rate=1e30)


def arm(method, changes=None, values=None):
    return Arm(task=SCALE.task, method=method, budget=SCALE.budget, changes=changes or Changes(), values=values)


ROWS = (
    Row("SGD", arm("sgd")),
    Row("NSO", arm("nso", values=(0.02, 0.5)), against="SGD"),
    Row("NSO, fixed", arm("nso", values=(0.02,)), against="NSO"),
    Row("NSO, fast", arm("nso", FAST, (0.02, 0.5)), against="SGD"),
    Row("SGD, doomed", arm("sgd", DOOMED), against="SGD"),
)
LISTED = {"toy": (SCALE,)}


def run(folder, watch=lambda *_: None, rows=ROWS):
    (one,) = study(LISTED, lambda _: rows, size="toy", seed=0, watch=watch, folder=folder)
    return one


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies") / "runs"


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(folder, told):
    with cheap_curvature():
        return run(folder, lambda *progress: told.append(progress))


@pytest.fixture(scope="module")
def runs(found, folder):
    """Every stored run, as plain JSON."""
    return [json.loads(path.read_text()) for path in folder.rglob("result.json")]


def stored(runs, row):
    """The final runs of a row by seed, its value chosen again."""
    rate = row.arm.changes.learning_rate
    mine = [r for r in runs if (r["spec"]["method"], r["spec"]["changes"]["learning_rate"]) == (row.arm.method, rate)]
    tuning = {}
    for r in mine:
        if r["spec"]["seed"] in (0, 1):
            tuning.setdefault(r["spec"]["value"], []).append(r["validation_accuracy"])
    if row.label == "NSO, fixed":
        value = 0.02
    else:
        value = min(tuning, key=lambda v: (-statistics.fmean(map(float, tuning[v])), v or 0))
    return value, {r["spec"]["seed"]: r for r in mine if r["spec"]["value"] == value}


@pytest.mark.parametrize("row", ROWS[:4], ids=lambda row: row.label)
@pytest.mark.parametrize("metric", ["test_accuracy", "test_loss", "validation_accuracy", "trace"])
def test_cells_hold_what_the_runs_hold(row, metric, found, runs):
    value, mine = stored(runs, row)
    factor = 100 if metric.endswith("accuracy") else 1
    numbers = [factor * mine[seed][metric] for seed in range(SCALE.seeds)]
    mean, half = statistics.fmean(numbers), 4.30265273 * statistics.stdev(numbers) / math.sqrt(3)
    shown = cells(found, row, metric)
    assert shown[0] == ("" if value is None else value)
    assert shown[1:4] == pytest.approx((mean, mean - half, mean + half), rel=1e-5, abs=1e-4)
    assert found.mean(row.label, metric) * factor == pytest.approx(mean, rel=1e-6)
    if row.against:
        _, theirs = stored(runs, found.row(row.against))
        differences = [numbers[seed] - factor * theirs[seed][metric] for seed in range(SCALE.seeds)]
        assert shown[4] == row.against
        assert shown[5] == pytest.approx(statistics.fmean(differences), rel=1e-5, abs=1e-4)
        assert shown[6] == pytest.approx(sign_flip(differences))
    else:
        assert shown[4:] == ("", "", "")


def sign_flip(differences):
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(sum(map(math.prod, zip(signs, differences, strict=True)))) for signs in patterns]
    return sum(total >= abs(sum(differences)) - 1e-9 for total in sums) / len(sums)


def test_a_fixed_value_and_a_chosen_one_share_their_runs(found, runs):
    assert found.value(found.row("NSO, fixed")) == 0.02
    assert len([r for r in runs if r["spec"]["method"] == "nso" and not r["spec"]["changes"]["learning_rate"]]) in (
        5,
        6,
    )
    assert [r.spec.seed for r in found.runs(found.row("NSO, fixed"))] == [0, 1, 2]
    assert {r.spec.changes for r in found.runs(found.row("NSO, fast"))} == {FAST}


def test_a_diverged_row_is_not_a_number_and_is_said(found):
    row = found.row("SGD, doomed")
    assert math.isnan(cells(found, row, "test_accuracy")[1])
    assert cells(found, row, "trace")[1:4] == ("", "", "")
    assert diverged_text(found) == "Diverged, so that their means are NaN: SGD, doomed (3 of 3 seeds)."
    said = difference_text(found, "SGD, doomed", "SGD", "test_loss")
    assert said == "not defined, as 3 of 3 pairs of runs diverged"


def test_tables_have_the_papers_numbers_at_their_end(found):
    table = metric_table(
        found, "trace", name="t", caption="Trace.", printed={"NSO": (1.5, "")}, heads=("paper", "its ρ")
    )
    assert table.columns[-2:] == ("paper", "its ρ")
    assert [line[0] for line in table.rows] == [row.label for row in ROWS]
    assert [line[-2:] for line in table.rows] == [("", ""), (1.5, ""), ("", ""), ("", ""), ("", "")]
    assert table.caption == "Trace. On digits-tiny: means over 3 seeds, Student intervals, exact sign-flip tests."


def test_accuracies_are_rounded_beyond_single_precision():
    assert scaled("test_accuracy", 0.9420000314712524) == 94.2
    assert scaled("trace", 0.123456789) == 0.123456789


def test_all_runs_are_in_the_series(found, runs):
    series = runs_series([found])
    assert len({len(column) for column in series.values()}) == 1
    lines = list(zip(series["row"], series["seed"], series["trace"], strict=True))
    for row in ROWS:
        mine = {seed: trace for label, seed, trace in lines if label == row.label}
        expected = {seed: r["trace"] for seed, r in stored(runs, row)[1].items()}
        known = {seed: float("nan") if trace is None else trace for seed, trace in expected.items()}
        assert mine == pytest.approx(known, nan_ok=True)


def test_what_is_said(found, runs):
    assert heading(found) == (
        "**digits-tiny** (200 scanned digits, a network of one hidden layer, in seconds; 12 gradient evaluations, 3 "
        "seeds)"
    )
    value, mine = stored(runs, found.row("NSO"))
    mean = 100 * statistics.fmean(r["test_accuracy"] for r in mine.values())
    assert mean_text(found, "NSO", "test_accuracy") == f"{mean:.4g} %"
    assert f"σ = {value:g} for NSO" in tuning_text(found)
    assert "At an end of its grid: NSO" in tuning_text(found)
    assert "of which these seeds could reach 0.25 at best" in difference_text(found, "NSO, fast", "SGD", "test_loss")
    assert setup_text([found, found]) == (
        "digits-tiny, digits-tiny: SGD, learning rate 0.02, momentum 0.9, weight decay 0, batch size 25, cosine, "
        "curvature on all training examples"
    )


def test_progress_counts_the_runs(found, told, runs):
    name, done, total = told[-1]
    assert (name, done) == ("digits-tiny", total)
    assert total >= len(runs)  # a run that two rows share counts for both
    done = [progress[1] for progress in told]
    assert done == sorted(done)


def test_what_is_stored_is_not_run_again(found, folder, monkeypatch):
    def refused(*_, **__):
        raise AssertionError

    monkeypatch.setattr(job, "train", refused)
    again = run(folder)
    results = [[r.model_dump_json() for r in one.results] for one in (again, found)]  # as text, since NaN is not NaN
    assert results[0] == results[1]


def test_figures_show_every_seed(found):
    figure = rows_figure(found, ("test_accuracy", "trace"))
    dots = [line for line in figure.axes[0].lines if line.get_markersize() == 3]
    assert [len(line.get_xdata()) for line in dots] == [SCALE.seeds] * len(ROWS)
    points = ((0.02, found.row("NSO")), (0.1, found.row("NSO, fast")))
    panel = Panel("", "trace", "learning rate", (Curve("NSO", points),), found.row("SGD"))
    (axes,) = curves_figure(found, [[panel]]).axes
    (mean,) = (line for line in axes.lines if line.get_label() == "NSO")
    assert list(mean.get_xdata()) == [0.02, 0.1]
    assert list(mean.get_ydata()) == pytest.approx([found.mean(row.label, "trace") for _, row in points])
    (level,) = (line for line in axes.lines if line.get_label() == "SGD")
    assert level.get_ydata()[0] == pytest.approx(found.mean("SGD", "trace"))
    dots = [line for line in axes.lines if line.get_markersize() == 2.5]
    assert [len(line.get_xdata()) for line in dots] == [SCALE.seeds] * 2
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "Hessian trace"


def test_what_is_missing_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    scales = {
        "small": (SCALE, Scale("cifar10-jpeg75-resnet20", 3, 12)),
        "paper": (SCALE, Scale("moon-resnet34", 3, 12)),
    }
    with pytest.raises(LabError, match=r"size is 'paper', which runs on moon-resnet34, but .* --size small"):
        study(scales, lambda _: ROWS, size="paper", seed=0, watch=print, folder=tmp_path / "runs")
    with pytest.raises(DataError, match=r"cifar10-jpeg75-resnet20 needs"):
        study(scales, lambda _: ROWS, size="small", seed=0, watch=print, folder=tmp_path / "runs")
    with pytest.raises(ArgumentError, match=r"task is 'digits-tine', but .*Did you mean 'digits-tiny'"):
        require(scales, "small", ["digits-tine"])
    with pytest.raises(ArgumentError, match=r"size is 'large'"):
        require(scales, "large")
    assert require(scales, "small", ["digits-tiny"]) == [SCALE]
    assert not list(tmp_path.iterdir())


# Fieller's interval of a ratio of paired means


@pytest.mark.parametrize(("slope", "seed"), [(0.9, 0), (0.2, 1), (-1.5, 2), (1.0, 3)])
def test_shares_have_the_interval_that_a_search_finds(slope, seed):
    rng = np.random.default_rng(seed)
    whole = rng.normal(2.0, 0.5, 7)
    kept = slope * whole + rng.normal(0, 0.4, 7)
    found = kept_share(kept, whole)
    theta = np.linspace(found.share - 3, found.share + 3, 60_001)
    rest = kept[:, None] - theta[None, :] * whole[:, None]
    inside = np.abs(rest.mean(axis=0)) <= stats.t.ppf(0.975, 6) * rest.std(axis=0, ddof=1) / math.sqrt(7)
    assert found.share == pytest.approx(kept.mean() / whole.mean())
    assert [found.low, found.high] == pytest.approx([theta[inside].min(), theta[inside].max()], abs=2e-4)


def test_shares_cover_the_true_ratio_as_often_as_they_say():
    rng, true, n, draws = np.random.default_rng(0), 0.8, 6, 1500
    hits = 0
    for whole in rng.normal(1.0, 0.8, (draws, n)):  # a denominator that is often not shown to differ from zero
        found = kept_share(true * whole + rng.normal(0, 0.5, n), whole)
        hits += found.low <= true <= found.high
    # Intervals without bounds take in what Fieller's set leaves out, so that coverage may lie above, never below.
    assert hits / draws >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / draws)
    hits = 0
    for whole in rng.normal(3.0, 0.5, (draws, n)):  # one that always is: the coverage is exact
        found = kept_share(true * whole + rng.normal(0, 0.5, n), whole)
        hits += found.low <= true <= found.high
    assert hits / draws == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / draws))


def test_shares_that_are_not_defined():
    assert math.isnan(kept_share([1.0, math.nan], [1.0, 1.0]).share)
    assert (kept_share([1.0], [2.0]).low, kept_share([1.0], [2.0]).high) == (-math.inf, math.inf)
    assert kept_share([1.0, 1.1, 0.9], [0.1, -0.1, 0.2]).verdict(0.9) == "not decided"
    assert kept_share([1.0, 1.01, 0.99], [1.0, 1.0, 1.0]).verdict(0.9) == "shown"
    assert kept_share([0.5, 0.51, 0.49], [1.0, 1.0, 1.0]).verdict(0.9) == "refuted"
    with pytest.raises(ArgumentError, match="there are 2 numerators and 1 denominators"):
        kept_share([1.0, 2.0], [1.0])


# Paired halves against NSO


def test_pairing_at_its_smallest(tmp_path, monkeypatch):
    monkeypatch.setitem(pairing.SIZES, "toy", (Scale("digits-tiny", 3, 8),))
    with cheap_curvature():
        record = reproduce("nso.pairing", "toy", tmp_path / "toy")
    rows = {}
    for path in (tmp_path / "toy").rglob("result.json"):
        result = json.loads(path.read_text())
        spec = result["spec"]
        rows.setdefault((spec["method"], spec["budget"]), {})[spec["value"], spec["seed"]] = result
    assert set(rows) == {("sgd", 8), ("sgd-halves", 8), ("nso", 8), ("nso", 16), ("nso-halves", 8)}
    (table,) = (t for t in record.tables if t.name == "shares")
    by_label = {line[0]: line for t in record.tables if t.name == "trace-digits-tiny" for line in t.rows}

    def traces(method, budget, label):
        return np.array([rows[method, budget][by_label[label][1] or None, seed]["trace"] for seed in range(3)])

    kept = traces("nso-halves", 8, "paired halves") - traces("sgd-halves", 8, "SGD, halves")
    whole = traces("nso", 16, "NSO") - traces("sgd", 8, "SGD")
    line = next(line for line in table.rows if line[1] == "trace")
    assert line[2] == pytest.approx(100 * kept.mean() / whole.mean())
    assert f"of the change of the trace {line[2]:.4g}".replace("-", "−") in record.text
    assert "Asked" in record.text
