"""What is shown while it runs: bars on a terminal, occasional lines elsewhere, and an honest guess of the time left."""

import io

import pytest
from rich.console import Console

from flatmin_lab import progress
from flatmin_lab.job import Job, Outcome
from flatmin_lab.plan import Planned
from flatmin_lab.progress import Display
from flatmin_lab.spec import Point, RunResult
from flatmin_lab.sweep import Finished, Lost, Progressed, Started
from small_runs import run_spec

FIRST, SECOND = (Job(run_spec(seed=seed, budget=100)) for seed in (0, 1))
LOST = Job(run_spec("sam", budget=100), measure=True)


def point(evaluations):
    return Point(
        evaluations=evaluations,
        train_loss=0.25,
        train_accuracy=0.75,
        validation_loss=0.5,
        validation_accuracy=0.625,
    )


def diverged(job):
    return Outcome(RunResult.diverged(job.spec, "the loss became nan", gradient_evaluations=3, seconds=0.1))


EVENTS = (
    Planned(runs_done=2, runs_total=5, work_left=3.3),
    Started(FIRST),
    Progressed(FIRST, point(50)),
    Started(LOST),
    Progressed(LOST, point(100)),
    Lost(LOST, "A worker was killed."),
    Started(LOST),
    Progressed(FIRST, point(100)),
    Finished(FIRST, diverged(FIRST)),
    Started(SECOND),
    Progressed(LOST, point(100)),
)


@pytest.fixture
def shown(monkeypatch):
    """Show all events, ten seconds apart, and return what was written."""

    def show(*, terminal):
        now = iter(range(0, 10_000, 10))
        monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=160, color_system=None)
        with Display(console) as display:
            for event in EVENTS:
                display(event)
            if terminal:
                display._bars.progress.refresh()
        return file.getvalue()

    return show


@pytest.mark.parametrize("terminal", [True, False])
def test_what_matters_is_said_at_once_and_in_one_line(shown, terminal):
    written = shown(terminal=terminal)
    assert "A worker was killed. The run is begun again." in written
    assert "Diverged: the loss became nan" in written


def test_lines_name_run_loss_accuracy_and_time(shown):
    lines = shown(terminal=False).splitlines()
    assert any(
        line.startswith("2/5 runs, ")
        and line.endswith("digits-clean/sgd/seed0: loss 0.2500, validation accuracy 62.5%")
        for line in lines
    )
    assert any(line.startswith("3/5 runs, ") and " left" in line for line in lines)


def test_bars_show_the_whole_and_each_run_at_work(shown):
    written = shown(terminal=True)
    assert "3/5" in written
    assert "digits-clean/sgd/seed1" in written
    assert "measuring curvature" in written
    assert "left" in written


def test_time_left_follows_from_the_work_done(monkeypatch):
    clock = progress._Clock()
    now = iter((100.0, 110.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    clock.count(Planned(0, 3, 3.0))
    assert clock.left == "time left unknown"
    clock.count(Started(FIRST))
    clock.count(Progressed(FIRST, point(10)))
    assert clock.left == "time left unknown"
    clock.count(Finished(FIRST, diverged(FIRST)))
    assert clock.left == "about 0:20 left"  # one of three runs in ten seconds
