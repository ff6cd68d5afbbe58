"""What is shown while it runs: bars on a terminal, occasional lines elsewhere, and an honest guess of the time left."""

import io

import pytest
from rich.console import Console

from flatmin_lab import progress
from flatmin_lab.job import Job, Outcome
from flatmin_lab.plan import Planned
from flatmin_lab.progress import Display, Tally
from flatmin_lab.spec import Point, RunResult, RunSpec
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
    clock = Tally()
    now = iter((100.0, 110.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    clock.count(Planned(0, 3, 3.0))
    assert clock.left == "time left unknown"
    clock.count(Started(FIRST))
    clock.count(Progressed(FIRST, point(10)))
    assert clock.left == "time left unknown"
    clock.count(Finished(FIRST, diverged(FIRST)))
    assert clock.left == "about 0:20 left"  # one of three runs in ten seconds


# --- a thousand runs, thirty at a time, ten seconds each

RUNS, AT_ONCE, SECONDS = 1000, 30, 10.0


class Clock:
    """Stands in for the time: it is what the last event says."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def job(number):
    """One of a thousand jobs. `RunSpec` validates, which is too slow here."""
    spec = RunSpec.model_construct(
        **{**dict(run_spec(budget=100)), "seed": number}, _fields_set={"task", "method", "value", "seed", "budget"}
    )
    return Job(spec)


def course():
    """What happens when: waves of thirty jobs; every hundredth diverges, and every two hundredth is lost once."""
    yield 0.0, Planned(runs_done=0, runs_total=RUNS, work_left=float(RUNS))
    jobs = [job(number) for number in range(RUNS)]
    done = Outcome(diverged(jobs[0]).result.model_copy(update={"status": "finished"}))
    now, waves = 0.0, [jobs[i : i + AT_ONCE] for i in range(0, RUNS, AT_ONCE)]
    for wave in waves:
        yield from ((now, Started(each)) for each in wave)
        for share in (25, 50, 75):
            yield from ((now + SECONDS * share / 100, Progressed(each, point(share))) for each in wave)
        for each in wave:
            if each.spec.seed % 200 == 0:
                yield now + SECONDS * 0.8, Lost(each, "A node died.")
                yield now + SECONDS * 0.8, Started(each)
        now += SECONDS
        yield from ((now, Finished(each, done if each.spec.seed % 100 else diverged(each))) for each in wave)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_thousand_runs_are_counted_and_the_time_left_is_right(clock):
    tally, at_worst = Tally(), 0.0
    for clock.now, event in course():
        tally.count(event)
        assert tally.running <= AT_ONCE
        if isinstance(event, Finished) and 100 <= tally.runs_done < RUNS and tally.runs_done % AT_ONCE == 0:
            waves_left = -(-(RUNS - tally.runs_done) // AT_ONCE)
            at_worst = max(at_worst, abs(seconds_of(tally.left) - waves_left * SECONDS) / SECONDS)
    assert (tally.runs_done, tally.running, tally.diverged, tally.lost) == (RUNS, 0, RUNS // 100, RUNS // 200)
    assert at_worst < 3  # waves of ten seconds: the first quarter of the first is not seen, the last is not full
    assert tally.left == "about 0:00 left"


def seconds_of(text):
    """Seconds that ``about 5:20 left`` says."""
    minutes, seconds = text.split()[1].split(":")
    return 60 * int(minutes) + int(seconds)


def test_hours_are_told_as_hours():
    assert [progress._clock_time(s) for s in (59, 61, 3600, 36_061)] == ["0:59", "1:01", "1:00:00", "10:01:01"]


@pytest.mark.parametrize("height", [5, 24, 100])
def test_a_thousand_runs_keep_to_the_screen(clock, height):
    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=height, color_system=None)
    display, most, states = Display(console), 0, ""
    for clock.now, event in course():
        display(event)
        most = max(most, len(display._bars.progress.tasks))
        if isinstance(event, Progressed) and display._tally.runs_done == 600:
            states = display._bars.progress.tasks[0].fields["at"]
    assert most == 1 + max(1, min(12, height - 6))
    assert "30 running, 6 diverged, 3 lost and begun again" in states
    assert f"{30 - (most - 1)} of them not shown" in states
    assert len(display._bars.progress.tasks) == 1


def test_every_run_comes_to_a_bar_while_it_waits_for_one(clock):
    """A run that began while all rows were taken is shown, where it is, once a row is free."""
    console = Console(file=io.StringIO(), force_terminal=True, width=160, height=8, color_system=None)
    display, jobs = Display(console), [job(number) for number in range(3)]
    for each in jobs:
        display(Started(each))
    display(Progressed(jobs[2], point(50)))
    rows = display._bars.progress
    assert [row.description for row in rows.tasks[1:]] == [jobs[0].spec.name, jobs[1].spec.name]
    display(Finished(jobs[0], diverged(jobs[0])))
    assert [(row.description, row.completed) for row in rows.tasks[1:]] == [
        (jobs[1].spec.name, 0),
        (jobs[2].spec.name, 50),
    ]


def test_without_a_terminal_a_thousand_runs_write_an_occasional_line(clock):
    file = io.StringIO()
    display = Display(Console(file=file, force_terminal=False, width=160))
    for clock.now, event in course():
        display(event)
    lines = file.getvalue().splitlines()
    progressing = [line for line in lines if "/1000 runs, " in line]
    assert len(progressing) <= clock.now / 10 + 1
    assert sum("begun again." in line for line in lines) == RUNS // 200
    assert sum(line.startswith("Diverged: ") for line in lines) == 10
    assert any("running, 3 diverged, 2 lost and begun again, " in line for line in progressing)


def test_runs_that_diverge_do_not_flood(clock):
    file = io.StringIO()
    display = Display(Console(file=file, force_terminal=False, width=160))
    for number in range(50):
        display(Finished(job(number), diverged(job(number))))
    lines = file.getvalue().splitlines()
    assert sum(line.startswith("Diverged: ") for line in lines) == 10
    assert sum("Further runs that diverge are counted" in line for line in lines) == 1
