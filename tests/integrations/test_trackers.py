"""Trackers hand on what they are told: read back from the files that the packages themselves wrote."""

import json
import math
import sqlite3
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import flatmin as fm
from flatmin.integrations.trackers import JsonLines, TensorBoard, Trackio, Wandb
from problems import closure_of, data, mlp

TOLD = [({"loss": 1.5, "hessian_trace_share/0": 0.25}, 10), ({"loss": 0.5, "hessian_trace": math.nan}, 20)]


def tell(tracker):
    with tracker:
        for metrics, step in TOLD:
            tracker.log(metrics, step)


class TestJsonLines:
    def test_each_call_is_a_line_that_can_be_read_at_once(self, tmp_path):
        tracker = JsonLines(tmp_path / "new" / "metrics.jsonl")
        tracker.log({"loss": 1.5}, 10)
        assert json.loads(tracker.path.read_text()) == {"step": 10, "loss": 1.5}
        tracker.close()

    def test_nan_is_null_and_a_file_that_exists_is_added_to(self, tmp_path):
        for _ in range(2):
            tell(JsonLines(tmp_path / "metrics.jsonl"))
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert lines[:2] == lines[2:]
        assert lines[1] == {"step": 20, "loss": 0.5, "hessian_trace": None}

    def test_numbers_of_torch_and_numpy_are_numbers(self, tmp_path):
        with JsonLines(tmp_path / "metrics.jsonl") as tracker:
            tracker.log({"loss": torch.tensor(0.5), "accuracy": np.float32(0.25), "epoch": 3}, 10)
        assert json.loads(tracker.path.read_text()) == {"step": 10, "loss": 0.5, "accuracy": 0.25, "epoch": 3.0}

    def test_a_run_that_goes_on_takes_away_what_comes_again(self, tmp_path):
        path = tmp_path / "metrics.jsonl"
        for purge_step, steps in ((None, (10, 20, 30)), (20, (20, 30)), (31, (40,))):
            with JsonLines(path, purge_step=purge_step) as tracker:
                for step in steps:
                    tracker.log({"loss": 1.0}, step)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30, 40]
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("purge_step", [None, 10])
    def test_a_line_that_is_not_whole_is_taken_away_and_one_of_others_kept(self, tmp_path, purge_step):
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n# a note\n[2]\n{"epoch": 3}\n{"step": "four"}\n{"step": 5, "lo')
        with JsonLines(path, purge_step=purge_step) as tracker:
            tracker.log({"loss": 0.5}, 10)
        assert (
            path.read_text()
            == '{"step": 1}\n# a note\n[2]\n{"epoch": 3}\n{"step": "four"}\n{"step": 10, "loss": 0.5}\n'
        )

    def test_a_monitor_writes_what_it_reads(self, tmp_path):
        model = mlp()
        opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05)
        with fm.Monitor(opt, model, every=2, to=[JsonLines(tmp_path / "metrics.jsonl")]) as monitor:
            for step in range(1, 5):
                monitor.log(step, loss=opt.step(closure_of(opt, model, data())))
        last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
        loss = last.pop("loss")
        assert math.isfinite(loss)
        assert last == {"step": 4, **monitor.latest.metrics()}


def test_tensorboard_shows_the_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 1.5), (20, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("hessian_trace_share/0")] == [(10, 0.25)]


def test_tensorboard_forgets_what_comes_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(TensorBoard(tmp_path))
    with TensorBoard(tmp_path, purge_step=20) as again:
        again.log({"loss": 0.25}, 20)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 1.5), (20, 0.25)]


@pytest.mark.filterwarnings("ignore")  # of the package itself
def test_wandb_keeps_the_numbers_on_this_machine(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Wandb(dir=tmp_path, name="one") as tracker:
        assert tracker.run.project == "flatmin"
        for metrics, step in TOLD:
            tracker.log(metrics, step)
        tracker.log({"last": 1.0}, 30)  # a step is complete when the next one comes
        assert (tracker.run.summary["loss"], tracker.run.summary["hessian_trace_share/0"]) == (0.5, 0.25)
    assert list(tmp_path.rglob("*.wandb"))
    assert capfd.readouterr().out == ""


@pytest.mark.filterwarnings("ignore")
def test_wandb_says_what_it_lacks(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(fm.ArgumentError, match=r"No API key configured. Log in with `wandb login`.*WANDB_MODE=offline"):
        Wandb(dir=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_the_numbers_on_this_machine(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    if str(tmp_path) != str(trackio.utils.TRACKIO_DIR):
        pytest.skip("trackio was imported before with another folder")
    tell(Trackio(name="one", auto_log_cpu=False))
    with sqlite3.connect(tmp_path / "flatmin.db") as base:
        rows = base.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(step, json.loads(metrics)["loss"]) for step, metrics in rows] == [(10, 1.5), (20, 0.5)]
    assert capfd.readouterr().out == ""


@pytest.fixture(params=[(Wandb, "wandb"), (Trackio, "trackio")], ids=["wandb", "trackio"])
def double(request, monkeypatch):
    """The tracker, and a package in the place of its own that keeps what it is told and talks on standard output."""
    kind, name = request.param
    calls = []

    def init(**options):
        sys.stdout.write("Welcome")
        calls.append(("init", options))
        return run

    run = SimpleNamespace(
        log=lambda metrics, step: calls.append(("log", metrics, step)), finish=lambda: calls.append(("finish",))
    )
    errors = SimpleNamespace(Error=KeyError)
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init, errors=errors))
    return kind, run, calls


class TestRuns:
    def test_they_are_begun_told_and_ended_once_without_a_word_on_standard_output(self, double, capsys):
        kind, _, calls = double
        tracker = kind(name="one", config={"sigma": 0.05})
        tell(tracker)
        tracker.close()
        begun = ("init", {"project": "flatmin", "name": "one", "config": {"sigma": 0.05}})
        assert calls == [begun, *(("log", metrics, step) for metrics, step in TOLD), ("finish",)]
        assert capsys.readouterr().out == ""

    def test_one_that_was_begun_elsewhere_is_ended_there(self, double):
        kind, run, calls = double
        tell(kind(run))
        assert [call[0] for call in calls] == ["log", "log"]


@pytest.mark.parametrize("resume", ["allow", "must", "never"])
def test_trackio_is_not_told_again_what_it_has(monkeypatch, resume):
    told = []
    run = SimpleNamespace(_next_step=21, log=lambda metrics, step: told.append(step), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **_: run))
    with Trackio(name="one", resume=resume) as tracker:
        for step in (10, 20, 21, 30):
            tracker.log({"loss": 1.0}, step)
    assert told == ([10, 20, 21, 30] if resume == "never" else [21, 30])


@pytest.mark.parametrize(
    ("build", "package"),
    [(lambda p: TensorBoard(p), "tensorboard"), (lambda p: Wandb(), "wandb"), (lambda p: Trackio(), "trackio")],
)
def test_a_missing_package_is_named_with_its_remedy(build, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"{package} is not installed.*pip install 'flatmin\[track\]'"
    ) as told:
        build(tmp_path)
    assert told.value.name == package
