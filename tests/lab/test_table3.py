"""Tables 3 and 6 at their smallest size: what was run, and every number made again from the stored runs."""

import csv
import itertools
import json
import math
import statistics

import pytest

from flatmin.errors import ArgumentError, DataError
from flatmin_lab import job, reproduction
from flatmin_lab.methods import METHODS
from flatmin_lab.recipes.nso2024 import published
from flatmin_lab.recipes.nso2024.settings import GROUNDS
from flatmin_lab.recipes.nso2024.table3 import SIZES, WAYS, table3
from flatmin_lab.reproduction import RECORD, reproduce
from flatmin_lab.store import Store
from flatmin_lab.tasks import task

(SIZE,) = SIZES["toy"]
TABLES = {
    "test-accuracy": ("test_accuracy", 100.0),
    "trace": ("trace", 1.0),
    "top-eigenvalue": ("top_eigenvalue", 1.0),
    "authors-lambda": ("authors_lambda", 1.0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("table3") / "toy"
    told = []
    reproduce("nso.table3", "toy", path, watch=lambda *progress: told.append(progress))
    assert told[-1] == (SIZE.task, told[-1][2], told[-1][2])
    return path


@pytest.fixture(scope="module")
def runs(folder):
    """Every stored run, as plain JSON."""
    return [json.loads(path.read_text()) for path in (folder / "sweep").rglob("result.json")]


def chosen(runs, way):
    """The value with the best mean validation accuracy over the tuning seeds, the smaller one of equals."""
    means = {}
    for run in runs:
        if run["spec"]["method"] == way and run["spec"]["seed"] in (0, 1):
            means.setdefault(run["spec"]["value"], []).append(run["validation_accuracy"])
    return min(means, key=lambda value: (-statistics.fmean(means[value]), value or 0))


def finals(runs, way):
    value = chosen(runs, way)
    found = [run for run in runs if (run["spec"]["method"], run["spec"]["value"]) == (way, value)]
    return sorted(found, key=lambda run: run["spec"]["seed"])


def test_all_values_and_seeds_were_run_with_one_budget(runs):
    asked = {
        (way, value, seed)
        for way in WAYS
        for value in (task(SIZE.task).grid(METHODS[way])[: GROUNDS[SIZE.task].tried] or (None,))
        for seed in range(SIZE.seeds)
    }
    assert {(r["spec"]["method"], r["spec"]["value"], r["spec"]["seed"]) for r in runs} == asked
    assert {r["gradient_evaluations"] for r in runs} == {SIZE.budget}
    for seed in range(SIZE.seeds):
        assert len({r["splits"] for r in runs if r["spec"]["seed"] == seed}) == 1
    assert len({r["splits"] for r in runs}) == SIZE.seeds


@pytest.mark.parametrize("name", TABLES)
def test_tables_hold_what_the_runs_hold(name, folder, runs):
    field, factor = TABLES[name]
    head, *rows = csv.reader((folder / f"{name}-digits-tiny.csv").read_text().splitlines())
    assert [row[0] for row in rows] == [METHODS[way].label for way in WAYS]
    reference = [factor * run[field] for run in finals(runs, "sgd")]
    for way, row in zip(WAYS, rows, strict=True):
        cells = dict(zip(head, row, strict=True))
        values = [factor * run[field] for run in finals(runs, way)]
        assert len(values) == SIZE.seeds
        assert cells["value"] == ("" if way == "sgd" else str(chosen(runs, way)))
        mean = statistics.fmean(values)
        half = 12.7062047 * statistics.stdev(values) / math.sqrt(2)  # Student's t of one degree of freedom
        expected = [mean, mean - half, mean + half]
        assert [float(cells[k]) for k in ("here", "95 % from", "to")] == pytest.approx(expected, rel=1e-6, abs=1e-4)
        if way != "sgd":
            differences = [a - b for a, b in zip(values, reference, strict=True)]
            assert cells["over"] == "SGD"
            assert float(cells["difference"]) == pytest.approx(statistics.fmean(differences), rel=1e-5, abs=1e-4)
            assert float(cells["p"]) == pytest.approx(sign_flip(differences))
        if field in published.TABLES_3_AND_6:
            printed = published.TABLES_3_AND_6[field]
            assert float(cells["paper, CIFAR-10"]) == printed[way][0]
            over = "" if way == "sgd" else printed[way][0] - printed["sgd"][0]
            assert cells["over SGD in the paper"] == str(over)


def sign_flip(differences):
    observed = abs(sum(differences))
    sums = [abs(sum(map(math.prod, zip(s, differences, strict=True)))) for s in itertools.product((1, -1), repeat=2)]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


def test_all_seeds_are_in_the_series(folder, runs):
    rows = list(csv.DictReader((folder / "runs-series.csv").read_text().splitlines()))
    expected = [(METHODS[way].label, run["spec"]["seed"], run["trace"]) for way in WAYS for run in finals(runs, way)]
    assert [(r["row"], int(r["seed"]), float(r["trace"])) for r in rows] == expected


def test_the_text_says_what_was_chosen_and_what_cannot_be_concluded(folder, runs):
    said = json.loads((folder / RECORD).read_text())["text"]
    assert "6.8 to 29.0 % below the best of the others" in said
    assert "but on Caltech-256 (SGD 80.0 %, NSO 78.1 %)" in said
    values = {part for part in said.split(". ") if "= " in part and " for " in part}
    assert any(f"σ = {chosen(runs, 'nso'):g} for" in part and "NSO" in part for part in values)
    assert any(f"α = {chosen(runs, 'ls'):g} for" in part and "Label smoothing" in part for part in values)
    assert "of which these seeds could reach 0.5 at best" in said


def test_finished_runs_are_kept_and_a_missing_one_is_made_again(folder, monkeypatch):
    made = []
    real = job.train

    def counted(spec):
        made.append(spec.folder)
        return real(spec)

    monkeypatch.setattr(job, "train", counted)
    before = json.loads((folder / RECORD).read_text())
    (folder / RECORD).unlink()
    lost = next((folder / "sweep").rglob("seed1-*/result.json"))
    lost.unlink()
    reproduce("nso.table3", "toy", folder)
    after = json.loads((folder / RECORD).read_text())
    assert [folder / "sweep" / "runs" / name / "result.json" for name in made] == [lost]
    assert (after["text"], after["tables"]) == (before["text"], before["tables"])


def test_flatmin_report_reads_the_runs(folder):
    from flatmin_lab.compare import assemble

    with Store(folder / reproduction.RUNS, new=False) as store:
        assert len(assemble(store.header().asked, store).results) == len(WAYS) * SIZE.seeds


def test_sizes_that_cannot_be_run_say_so_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATMIN_DATA", raising=False)
    with pytest.raises(DataError, match=r"needs cifar10_jpeg75\.npz.*FLATMIN_DATA"):
        table3("small", 0, print, tmp_path / "small")
    with pytest.raises(DataError, match=r"The task cifar10-resnet34 needs .*FLATMIN_DATA"):
        table3("paper", 0, print, tmp_path / "paper")
    with pytest.raises(ArgumentError, match="size is 'tiny'"):
        table3("tiny", 0, print, tmp_path / "tiny")
    assert not list(tmp_path.iterdir())
