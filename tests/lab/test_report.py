"""The report: everything in one file, nothing claimed beyond the intervals, nothing foreign executed."""

import base64
import hashlib
import io
import math
import re
from importlib.resources import files

import pytest
from rich.console import Console

import synthetic
from flatmin_lab.report import text
from flatmin_lab.report.page import render, write_report
from flatmin_lab.report.summary import summarise
from flatmin_lab.report.table import console_table, results_frame, summary_frame
from flatmin_lab.spec import RunResult
from page_parser import Page


@pytest.fixture(scope="module")
def comparison():
    return synthetic.comparison()


@pytest.fixture(scope="module")
def page(comparison):
    return render(comparison)


def test_one_file_without_foreign_scripts_or_requests(page):
    found = Page(page)
    assert found.open == []
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script == files("flatmin_lab.report").joinpath("surfaces.js").read_text()
    assert found.scripts == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert all(url.startswith(("#", "data:")) for url in found.loaded)
    assert not re.search(r"@import|url\((?!['\"]?(#|data:))", page)
    assert len(found.ids) == len(set(found.ids))
    targets = {url[1:] for url in found.loaded if url.startswith("#")}
    assert targets <= set(found.ids)


def test_every_seed_is_a_mark(page, comparison):
    for index, task in enumerate(comparison.spec.tasks):
        for metric in ("test_accuracy", "trace"):
            for method in comparison.spec.methods:
                for seed in range(comparison.spec.seeds):
                    assert f'id="t{index}-{metric}-seed-{method}-{seed}"' in page, task
        for method in comparison.spec.methods:
            for seed in range(comparison.spec.seeds):
                assert f'id="t{index}-train_loss-curve-{method}-{seed}"' in page


def test_what_came_from_outside_is_escaped():
    evil = "<script>alert(1)</script>"
    hostile = synthetic.comparison(tasks=(evil,), methods=("sgd", '"><img src=x onerror=1>'), seeds=2)
    hostile = hostile.model_copy(update={"environment": {"python": evil, evil: "x"}})
    html = render(hostile)
    found = Page(html)
    assert found.scripts == 1
    assert "<script>alert" not in html
    assert evil in "".join(found.text)
    assert "x" not in found.loaded


def test_no_number_appears_that_was_not_measured(page, comparison):
    """Spot check: the mean test accuracy of each method is that of its runs."""
    for summary in summarise(comparison):
        mean = sum(100 * r.test_accuracy for r in summary.results) / len(summary.results)
        assert f"{mean:.1f}<small>" in page


def shifted(points, seeds=6, spread=0.0):
    """NSO better than SGD by ``points`` in every seed, give or take."""
    base = synthetic.comparison(tasks=("digits-clean",), methods=("sgd", "nso"), seeds=seeds)
    results = []
    for r in base.results:
        wiggle = spread * (-1) ** r.spec.seed
        accuracy = 0.8 + 0.001 * r.spec.seed + (points + wiggle if r.spec.method == "nso" else 0.0)
        results.append(r.model_copy(update={"test_accuracy": accuracy}))
    return base.model_copy(update={"results": tuple(results)})


@pytest.mark.parametrize(
    ("comparison", "sentence"),
    [
        (shifted(0.03), "higher test accuracy than SGD"),
        (shifted(-0.03), "lower test accuracy than SGD"),
        (shifted(0.001, spread=0.05), "no difference shown"),
        (shifted(0.03, seeds=4), "not enough seeds, since the test can reach p = 0.125 at the smallest"),
        (shifted(0.03, seeds=1), "not enough seeds"),
    ],
    ids=["win", "loss", "undecided", "few seeds", "one seed"],
)
def test_words_follow_from_intervals_and_tests(comparison, sentence):
    html = render(comparison)
    findings = html.split('<ul class="findings">')[1].split("</ul>")[0]
    assert sentence in findings
    for other in ("higher test accuracy", "lower test accuracy", "no difference shown", "not enough seeds"):
        assert (other in findings) == (other in sentence)
    assert summary_frame(comparison)["test_accuracy_difference_verdict"].iloc[1] in sentence


def test_a_diverged_run_is_shown_as_what_it_is(comparison):
    first = next(r for r in comparison.results if r.spec.method == "nso")
    lost = RunResult.diverged(first.spec, "loss became nan", gradient_evaluations=10, seconds=0.1)
    broken = comparison.model_copy(update={"results": tuple(lost if r is first else r for r in comparison.results)})
    html = render(broken)
    assert f"1 run diverged and counts as NaN: {first.spec.name}" in html
    assert "1 of 6 diverged" in html
    assert "pairs of runs diverged" in html
    assert math.isnan(
        summary_frame(broken).set_index(["task", "method"]).loc[(first.spec.task, "nso"), "test_accuracy_mean"]
    )
    assert len(results_frame(broken)) == len(comparison.results)


@pytest.mark.parametrize(
    "changes",
    [
        {"results": ()},
        {"surfaces": ()},
        {"selections": ()},
        {"environment": {}},
    ],
    ids=lambda c: next(iter(c)),
)
def test_what_is_missing_is_left_out(comparison, changes):
    html = render(comparison.model_copy(update=changes))
    assert Page(html).open == []
    if "results" in changes:
        assert "No run has finished yet" in html
    if "surfaces" in changes:
        assert "No loss surface is stored" in html


def test_without_histories_or_curvature(comparison):
    bare = [r.model_copy(update={"history": (), "trace": None, "trace_stderr": None}) for r in comparison.results]
    html = render(comparison.model_copy(update={"results": tuple(bare)}))
    assert "not measured" in html
    assert "Live Hessian trace" not in html


def test_without_the_reference():
    html = render(synthetic.comparison(methods=("nso", "sam"), tasks=("digits-clean",)))
    assert "SGD was not among the methods" in html
    assert '<ul class="findings">' not in html


def test_one_method():
    assert Page(render(synthetic.comparison(methods=("sgd",), tasks=("digits-clean",), seeds=2))).open == []


def test_equal_comparisons_give_equal_pages(comparison, page):
    assert render(comparison) == page


def test_written_whole_or_not_at_all(comparison, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match=r"Cannot write .*report\.html.*disk or your quota is full"):
        write_report(comparison, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_console_table_fits(comparison, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(comparison))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    printed = "\n".join(lines)
    assert "σ = 0.05" in printed
    assert all(text.method_label(m) in printed for m in comparison.spec.methods)


def test_frames_are_tidy(comparison):
    frame = results_frame(comparison)
    assert len(frame) == len(comparison.results)
    assert {"task", "method", "seed", "test_accuracy", "trace", "gradient_evaluations"} <= set(frame.columns)
    assert not frame.columns.duplicated().any()
