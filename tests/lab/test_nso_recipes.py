"""Tables 2 and 4, Figures 4 and 5 and the ablations of the NSO paper at their smallest size, and what they are made of.

What is run, and the numbers of every table of claims made again from the stored runs.
"""

import csv
import json
import math
import statistics

import pytest

from cheap_curvature import cheap_curvature
from flatmin.errors import DataError
from flatmin_lab.data.digits import digits_clean, digits_noisy
from flatmin_lab.errors import LabError
from flatmin_lab.methods import METHODS
from flatmin_lab.recipes.nso2024 import ablations, fig4, fig5, published, table2, table4
from flatmin_lab.recipes.nso2024.claims import Claim
from flatmin_lab.recipes.nso2024.settings import GROUNDS, published_budget
from flatmin_lab.recipes.studies import Scale
from flatmin_lab.reproduction import reproduce
from flatmin_lab.tasks import task

NAMES = {"table2": table2, "table4": table4, "fig4": fig4, "fig5": fig5, "ablations": ablations}
(SIZE,) = table2.SIZES["toy"]
SETTING = task(SIZE.task).setting


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nso")


@pytest.fixture(scope="module")
def records(folder):
    """Every recipe at its smallest, all with one folder of runs."""
    with cheap_curvature():
        return {name: reproduce(f"nso.{name}", "toy", folder / name, runs=folder / "runs") for name in NAMES}


@pytest.fixture(scope="module")
def runs(records, folder):
    """The stored runs, as plain JSON, by method, value, budget, changes and seed."""
    stored = {}
    for path in (folder / "runs").rglob("result.json"):
        run = json.loads(path.read_text())
        spec = run["spec"]
        changes = tuple(sorted((k, v) for k, v in spec["changes"].items() if v is not None))
        stored.setdefault((spec["method"], spec["budget"], changes), {})[spec["value"], spec["seed"]] = run
    return stored


def metric_of(runs, key, metric, value="chosen"):
    """A metric by seed, of the value given or of the one that is best on validation data among those tried."""
    mine = runs[key]
    if value == "chosen":
        tried = task(SIZE.task).grid(METHODS[key[0]])[: GROUNDS[SIZE.task].tried] or (None,)
        means = {v: statistics.fmean(mine[v, seed]["validation_accuracy"] for seed in (0, 1)) for v in tried}
        value = min(means, key=lambda v: (-means[v], v or 0))
    return [mine[value, seed][metric] for seed in range(SIZE.seeds)]


def table(record, name):
    (found,) = (t for t in record.tables if t.name == name)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def check_claim(line, mine, theirs):
    """A line of claims holds the difference of two lists by seed, in its unit."""
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    if line["in"] == "%":
        expected = 100 * (statistics.fmean(mine) / statistics.fmean(theirs) - 1)
    else:
        assert line["in"] == "points"
        expected = 100 * statistics.fmean(differences)
        half = 100 * 12.7062047 * statistics.stdev(differences) / math.sqrt(2)
        assert (line["95 % from"], line["to"]) == pytest.approx((expected - half, expected + half), rel=1e-4, abs=2e-4)
    assert line["here"] == pytest.approx(expected, rel=1e-5, abs=1e-4)
    same_sign = all(d > 0 for d in differences) or all(d < 0 for d in differences)
    tied = any(abs(d) < 1e-12 for d in differences)
    if not tied:
        assert line["p"] == (0.5 if same_sign else 1.0)
    assert line["verdict"] == "not enough seeds"


def test_table_2(records, runs):
    lines = table(records["table2"], "claims")
    for line in lines:
        one, _, other = line["claim"].partition(" over ")
        ways = {
            "NSO": {"gaussian": "nso"} | {law: f"nso-{law}" for law in table2.LAWS},
            "WP-SGD": {"gaussian": "wpsgd"} | {law: f"wpsgd-{law}" for law in table2.LAWS},
        }
        law = other.partition(", ")[2] or one.partition(", ")[2]
        mine = ways["NSO"][law]
        theirs = "sgd" if other.startswith("SGD") else ways["WP-SGD"][law] if other.startswith("WP") else "nso"
        metric = line["of"].replace(" ", "_")
        check_claim(line, *(metric_of(runs, (way, SIZE.budget, ()), metric) for way in (mine, theirs)))
    assert len(lines) == 2 + 2 * 5 + 4
    printed = {line["claim"]: line["paper"] for line in lines if line["of"] == "test accuracy"}
    assert printed["NSO over WP-SGD, gaussian"] == pytest.approx(((62.3 - 60.4) + (77.4 - 76.3) + (66.6 - 62.3)) / 3)
    assert printed["NSO over WP-SGD, binomial"] == printed["NSO over WP-SGD, rademacher"] == ""


def test_table_2_has_the_papers_rows(records):
    lines = {line[""]: line for line in table(records["table2"], "test-accuracy-digits-tiny")}
    assert list(lines) == [table2.LABELS[way] for way in table2.WAYS]
    assert lines["NSO, gaussian"]["paper, Retina"] == 66.6
    assert lines["WP-SGD, binomial"]["paper, Aircraft"] == 11.3
    assert lines["NSO, laplace"]["over"] == "WP-SGD, laplace"
    said = records["table2"].text
    assert "NSO with Gaussian noise is the best row everywhere" in said
    assert "whose mean is 2 and not 0" in said
    assert "Bin(4, ½) − 2" in said


def test_table_4_has_every_seed_of_every_radius(records, runs):
    for metric in ("trace", "validation_accuracy"):
        factor = 100 if metric.endswith("accuracy") else 1
        lines = {line[""]: line for line in table(records["table4"], f"{metric.replace('_', '-')}-digits-tiny")}
        assert len(lines) == 1 + 3 * GROUNDS[SIZE.task].tried
        for way in table4.WAYS:
            for i, value in enumerate(table4.walked(SIZE, way)):
                line = lines[table4.label(way, value)]
                numbers = metric_of(runs, (way, SIZE.budget, ()), metric, value)
                assert line["here"] == pytest.approx(factor * statistics.fmean(numbers), rel=1e-5, abs=1e-4)
                expected = published.TABLE_4[metric][way][i] if way != "nso" else ""
                assert line["paper, Indoor"] == expected
    assert "falling in 5 of 5 steps" in records["table4"].text
    assert "76.6 %, with the fifth of six" in records["table4"].text


def test_radii_walked_on_digits_are_the_papers_times_twenty():
    for name in ("digits-clean", "digits-noisy"):
        assert GROUNDS[name].rhos == pytest.approx([20 * rho for rho in published.TABLE_4_RHOS])
    assert GROUNDS["indoor-resnet34"].rhos == published.TABLE_4_RHOS


def test_figure_4_crosses_learning_rates_and_lengths(records, runs):
    lines = table(records["fig4"], "cells-digits-tiny")
    sigma = GROUNDS[SIZE.task].sigma
    assert len(lines) == 4
    for line, (rate, budget) in zip(lines, fig4.cells(SIZE), strict=True):
        key = (budget, (("learning_rate", rate),))
        check_claim(line, *(metric_of(runs, (way, *key), "test_loss", sigma) for way in ("nso", "wpsgd")))
    small = Scale("digits-clean", seeds=8, budget=1200)
    assert fig4.cells(small) == [(r, n) for n in (600, 1200, 2400) for r in (0.01, 0.02, 0.04)]


@pytest.mark.parametrize("name", ["digits-tiny", "digits-clean", "digits-noisy", "cifar10-jpeg75-resnet20"])
def test_figure_5_shows_every_batch_size_as_many_examples(name):
    (scale,) = (s for size in ("toy", "small") for s in fig5.SIZES[size] if s.task == name)
    examples = GROUNDS[name].examples
    wanted = seen(examples, task(name).setting.batch_size, scale.budget // 2)
    for batch in fig5.BATCHES:
        assert (
            abs(seen(examples, batch, fig5.steps(scale, batch)) - wanted) <= batch
        )  # to the nearest step, and its end


def seen(examples, batch, steps):
    """Examples in this many steps, the last batch of each epoch being smaller."""
    sizes = [min(batch, examples - start) for start in range(0, examples, batch)]
    epochs, rest = divmod(steps, len(sizes))
    return epochs * examples + sum(sizes[:rest])


def test_figure_5_compares_with_sam_and_combines(records, runs):
    ground = GROUNDS[SIZE.task]
    for line in table(records["fig5"], "batches-digits-tiny"):
        batch = int(line["claim"].removeprefix("batch "))
        key = (2 * fig5.steps(SIZE, batch), (("batch_size", batch),))
        metric = line["of"].replace(" ", "_")
        mine = metric_of(runs, ("nso", *key), metric, ground.sigma)
        check_claim(line, mine, metric_of(runs, ("sam", *key), metric, ground.rho))
    lines = {(line["claim"], line["of"]): line for line in table(records["fig5"], "combined-digits-tiny")}
    penalised = (("distance_penalty", fig5.PENALTY),)
    for metric in ("trace", "test_loss"):
        line = lines["NSO over SGD, both with distance penalty", metric.replace("_", " ")]
        mine = metric_of(runs, ("nso", SIZE.budget, penalised), metric, ground.sigma)
        check_claim(line, mine, metric_of(runs, ("sgd", SIZE.budget, penalised), metric))
        assert line["paper"] == published.COMBINED[metric]
    assert not any("augmentation" in claim for claim, _ in lines)
    assert "by −13.6 % and the test loss by −16.3 %" in records["fig5"].text


def test_only_colour_images_are_mirrored():
    assert set(fig5.additions(Scale("digits-noisy", 1, 2))) == {"distance penalty"}
    added = fig5.additions(Scale("cifar10-jpeg75-resnet20", 1, 2))
    assert added["augmentation"].augmentation == "flip-crop"


def test_ablations(records, runs):
    budget, rate = SIZE.budget, SETTING.learning_rate / (1 - SETTING.momentum)
    bare = (("learning_rate", rate), ("momentum", 0.0), ("weight_decay", 0.0))
    pairs = {
        "−U instead of a second draw": (("nso", budget, ()), ("wpsgd", budget, ())),
        "k = 2 over k = 1, as many steps": (("nso-k2", 2 * budget, ()), ("nso", budget, ())),
        "k = 2 over k = 1, as many gradients": (("nso-k2", budget, ()), ("nso", budget, ())),
        "NSO over label smoothing": (("nso", budget, ()), ("ls", budget, ())),
        "NSO over SGD, no momentum or decay": (("nso", budget, bare), ("sgd", budget, bare)),
        "σ rising over constant": (("nso-rising", budget, ()), ("nso", budget, ())),
        "σ falling over constant": (("nso-falling", budget, ()), ("nso", budget, ())),
    }
    lines = table(records["ablations"], "claims")
    assert {line["claim"] for line in lines} == set(pairs)
    for line in lines:
        metric = line["of"].replace(" ", "_")
        check_claim(line, *(metric_of(runs, key, metric) for key in pairs[line["claim"]]))
    printed = [line["paper"] for line in lines if line["paper"]]
    assert printed == [3.6, 1.2, -10.6, -17.7, "no gain", "no gain"]
    budgets = {method: {key[1] for key in runs if key[0] == method} for method in ("nso-k2", "nso-rising")}
    assert budgets == {"nso-k2": {budget, 2 * budget}, "nso-rising": {budget}}


def test_all_seeds_are_in_the_series_and_every_figure_is_drawn(records, folder):
    for name in NAMES:
        rows = list(csv.DictReader((folder / name / "runs-series.csv").read_text().splitlines()))
        seeds = {}
        for row in rows:
            seeds.setdefault(row["row"], []).append(int(row["seed"]))
        assert all(listed == list(range(SIZE.seeds)) for listed in seeds.values())
        assert (folder / name / f"{name}-digits-tiny.png").read_bytes().startswith(b"\x89PNG")
        said = records[name].text
        assert said.startswith("**The paper**")
        assert "**What differs from the paper**" in said
        assert "Data and networks are others than the paper's" in said


class Told:
    """Stands in for what was found: three paired seeds of two rows and nothing else."""

    def __init__(self, mine, theirs):
        self.values = {"mine": mine, "theirs": theirs}

    def row(self, label):
        return label

    def runs(self, label):
        from types import SimpleNamespace

        spec = [SimpleNamespace(seed=seed) for seed in range(len(self.values[label]))]
        return [
            SimpleNamespace(spec=s, trace=x, trace_stderr=None) for s, x in zip(spec, self.values[label], strict=True)
        ]

    def difference(self, label, against, metric):
        from flatmin_lab.report.summary import paired_difference

        return paired_difference(self.runs(label), self.runs(against), metric)


HIGH, LOW, MIXED = ([10 + s + 0.1 * i for i in range(7)] for s in (1, 0, 0))
MIXED = [x + (-1) ** i for i, x in enumerate(MIXED)]


def test_verdicts_say_agreement_only_where_a_sign_is_shown():
    claim = Claim("c", "trace", "mine", "theirs", -10.0, relative=True, sign=-1)
    assert claim.verdict(Told(LOW, HIGH)) == "agrees"
    assert claim.verdict(Told(HIGH, LOW)) == "opposite"
    assert claim.verdict(Told(MIXED, LOW)) == "no difference shown"
    assert claim.verdict(Told(LOW[:3], HIGH[:3])) == "not enough seeds"
    assert Claim("c", "trace", "mine", "theirs").verdict(Told(LOW, HIGH)) == "lower"
    none = Claim("c", "trace", "mine", "theirs", "no gain")
    assert none.verdict(Told(LOW, HIGH)) == "lower, while the paper has no difference"
    assert none.verdict(Told(MIXED, LOW)) == "no difference shown"
    mean, low, high = claim.interval(Told(LOW, HIGH))
    assert mean == pytest.approx(100 * (sum(LOW) / sum(HIGH) - 1))
    assert low <= mean <= high
    assert claim.said(Told(LOW, HIGH)).startswith("c, trace: −")
    lost = [math.nan, *LOW[1:]]
    assert claim.said(Told(lost, HIGH)) == "c: not defined, as 1 of 7 pairs of runs diverged"


def test_what_is_known_of_a_task_is_true_of_it():
    assert GROUNDS["digits-tiny"].examples == GROUNDS["digits-clean"].examples == len(digits_clean(0).train)
    assert GROUNDS["digits-noisy"].examples == len(digits_noisy(0).train)
    assert published_budget(3334) == 2 * 30 * 105
    budgets = {scale.task: scale.budget for scale in table2.SIZES["paper"]}
    assert budgets == {"aircraft-resnet34": 6300, "indoor-resnet34": 9060, "retina-resnet34": 2640}


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_cannot_be_run_say_so_before_anything_starts(name, tmp_path, monkeypatch):
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    recipe = getattr(NAMES[name], name)
    first = NAMES[name].SIZES["paper"][0].task
    with pytest.raises((DataError, LabError), match=rf"{first}\b.*"):
        recipe("paper", 0, print, tmp_path / "paper")
    with pytest.raises(DataError, match=r"cifar10-jpeg75-resnet20 needs cifar10_jpeg75\.npz.*FLATMIN_DATA"):
        recipe("small", 0, print, tmp_path / "small")
    assert not list(tmp_path.iterdir())
