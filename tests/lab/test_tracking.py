"""What trackers are told of a run: each point once, however often the run is interrupted, and never at its cost."""

import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from flatmin_lab.errors import LabError
from flatmin_lab.train import single
from flatmin_lab.train.checkpoint import KeptCheckpoints
from flatmin_lab.train.config import MethodConfig, TrainConfig
from flatmin_lab.train.folder import read_metrics
from flatmin_lab.train.progress import RunBar
from flatmin_lab.train.tracking import metrics
from small_runs import ENVIRONMENT

NSO = MethodConfig(name="nso", sigma=0.05)


def config(track, method=NSO, **changes):
    given = {"task": "digits-clean", "budget": 24, "checkpoint_seconds": 0.0, "measure": False, "track": track}
    return TrainConfig(method=method, **{**given, **changes})


def go(config, folder):
    """Do a run; what was said of it."""
    said = io.StringIO()
    result = single.run_single(config, folder, RunBar(Console(file=said, width=500)))
    return result, said.getvalue()


def interrupt(monkeypatch, config, folder, saves):
    """Do a run until it was to save this checkpoint, and end it there, before or after."""
    save, left = KeptCheckpoints.save, [saves]

    def interrupted(self, state):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        save(self, state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(KeptCheckpoints, "save", interrupted)
        go(config, folder)


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [(event.step, event.value) for event in EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(name)]


class Package:
    """In the place of wandb or trackio: keeps what it is told, and goes on with a run of the same name or id."""

    def __init__(self):
        self.runs, self.ended, self.failing = {}, 0, None

    def init(self, **options):
        self.options = options
        told = self.runs.setdefault(options["name"], [])

        def log(metrics, step):
            if self.failing:
                raise self.failing
            told.append((step, metrics))

        def finish():
            self.ended += 1

        return SimpleNamespace(log=log, finish=finish, _next_step=told[-1][0] + 1 if told else 0)


@pytest.fixture(params=["wandb", "trackio"])
def package(request, monkeypatch):
    package = Package()
    errors = SimpleNamespace(Error=KeyError)
    monkeypatch.setitem(sys.modules, request.param, SimpleNamespace(init=package.init, errors=errors))
    package.name = request.param
    return package


def test_the_numbers_are_those_of_the_folder_under_the_names_of_a_monitor(package, tmp_path):
    go(config(package.name), tmp_path)
    (told,) = package.runs.values()
    history = read_metrics(tmp_path)
    assert told == [(point.evaluations, metrics(point)) for point in history]
    last, names = history[-1], {"hessian_trace", "hessian_trace_stderr", "gradient_evaluations", "forward_passes"}
    assert names | {"noise_to_signal", "train_loss", "validation_accuracy", "hessian_trace_share/0"} <= set(told[-1][1])
    assert told[-1][1]["hessian_trace"] == last.live_trace
    assert sum(value for name, value in told[-1][1].items() if "share" in name) == pytest.approx(1.0)
    assert package.ended == 1
    assert package.options["config"]["method"]["sigma"] == 0.05


def test_methods_without_a_live_trace_tell_of_none(package, tmp_path):
    go(config(package.name, MethodConfig(name="sgd")), tmp_path)
    (told,) = package.runs.values()
    assert not any("hessian" in name for name in told[-1][1])


@pytest.mark.parametrize("saves", range(1, 6))
def test_a_run_that_goes_on_goes_on_in_the_tracker(package, tmp_path, monkeypatch, saves):
    asked = config(package.name, budget=12)
    interrupt(monkeypatch, asked, tmp_path, saves)
    assert package.ended == 1
    go(asked, tmp_path)
    (told,) = package.runs.values()
    if package.name == "wandb":  # which itself leaves out steps that it has
        told = list(dict(told).items())
    assert told == [(point.evaluations, metrics(point)) for point in read_metrics(tmp_path)]


@pytest.mark.parametrize("saves", range(6))
def test_tensorboard_shows_each_point_once(tmp_path, monkeypatch, saves):
    pytest.importorskip("tensorboard")
    asked = config("tensorboard", budget=12)
    interrupt(monkeypatch, asked, tmp_path, saves)
    go(asked, tmp_path)
    expected = [(point.evaluations, pytest.approx(point.train_loss)) for point in read_metrics(tmp_path)]
    assert scalars(tmp_path, "train_loss") == expected


@pytest.mark.slow
def test_trackio_keeps_each_point_once(tmp_path):
    """In processes of their own, since trackio takes its folder from the environment when it is imported."""
    pytest.importorskip("trackio")
    code = """
import sys, pathlib, pytest
from test_tracking import config, go, interrupt
folder = pathlib.Path(sys.argv[1])
with pytest.MonkeyPatch.context() as patch:
    interrupt(patch, config("trackio", budget=12), folder, 3)
go(config("trackio", budget=12), folder)
"""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (ENVIRONMENT["PYTHONPATH"], here, here.parent)))
    environment = {**ENVIRONMENT, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": paths}
    words = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")]
    subprocess.run(words, env=environment, check=True, timeout=120, capture_output=True)
    with sqlite3.connect(tmp_path / "trackio" / "flatmin.db") as base:
        rows = base.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    found = [(step, json.loads(told)["train_loss"]) for step, told in rows]
    assert found == [(point.evaluations, point.train_loss) for point in read_metrics(tmp_path / "run")]


def test_a_tracker_that_fails_does_not_end_the_run(package, tmp_path):
    package.failing = OSError("No space left on device")
    result, said = go(config(package.name), tmp_path)
    assert result.status == "finished"
    assert len(read_metrics(tmp_path)) == len(result.history)
    assert said.count("failed at step") == 1
    assert "No space left on device. The run goes on, with a gap in its records." in said


def test_a_tracker_that_cannot_begin_is_refused_before_training(package, tmp_path, monkeypatch):
    def refuse(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules[package.name], "init", refuse)
    with pytest.raises(LabError, match=rf"{package.name} cannot begin: no route to host. .*leave --track out"):
        go(config(package.name), tmp_path)
    assert not read_metrics(tmp_path)


def test_a_tracker_that_is_not_there_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(LabError, match=r"trackio is not installed.*pip install 'flatmin\[track\]'. Or leave --track"):
        go(config("trackio"), tmp_path)


@pytest.mark.parametrize("damage", ["", "[1]", "{}", None])
def test_a_damaged_name_makes_a_new_one(package, tmp_path, monkeypatch, damage):
    asked = config(package.name, budget=8)
    interrupt(monkeypatch, asked, tmp_path, 2)
    file = tmp_path / "tracking.json"
    file.unlink() if damage is None else file.write_text(damage)
    go(asked, tmp_path)
    assert len(package.runs) == 2


def test_a_finished_run_is_not_told_again(package, tmp_path):
    go(config(package.name, budget=4), tmp_path)
    go(config(package.name, budget=4), tmp_path)
    assert (len(package.runs), package.ended) == (1, 1)
