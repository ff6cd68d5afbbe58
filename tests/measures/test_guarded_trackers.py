"""A tracker that fails costs records, not the run."""

import pytest
import torch

import flatmin as fm
from flatmin.measures import Guarded
from problems import closure_of, data, mlp


class Broken:
    """A tracker that fails at these steps, and to close."""

    def __init__(self, *steps, closes=True, error=None):
        self.steps, self.closes, self.error = steps, closes, error or OSError("No space left on device.")
        self.kept, self.closed = [], 0

    def log(self, metrics, step):
        if step in self.steps:
            raise self.error
        self.kept.append((step, metrics))

    def close(self):
        self.closed += 1
        if not self.closes:
            raise self.error


def test_the_first_failure_is_told_and_the_tracker_tried_again():
    said, tracker = [], Broken(1, 2)
    guarded = Guarded(tracker, said.append)
    for step in range(4):
        guarded.log({"loss": 1.0}, step)
    assert [step for step, _ in tracker.kept] == [0, 3]
    assert said == [
        "The tracker Broken failed at step 1: No space left on device. The run goes on, with a gap in its records."
    ]


@pytest.mark.parametrize(("error", "why"), [(OSError(), "OSError"), (KeyError("loss"), "'loss'")])
def test_closing_may_fail_too(error, why):
    said = []
    Guarded(Broken(closes=False, error=error), said.append).close()
    assert said == [f"The tracker Broken failed to close: {why}. The run goes on, with a gap in its records."]


def test_who_interrupts_the_run_is_not_held_up():
    with pytest.raises(KeyboardInterrupt):
        Guarded(Broken(0, error=KeyboardInterrupt()), print).log({}, 0)


def test_a_monitor_warns_at_the_line_that_logs_and_tells_and_closes_the_others():
    model = mlp()
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05)
    first, second = Broken(2, closes=False), Broken()
    monitor = fm.Monitor(opt, model, every=1, to=[first, second])
    for step in (1, 2, 3):
        loss = opt.step(closure_of(opt, model, data()))
        if step == 2:
            with pytest.warns(RuntimeWarning, match=r"Broken failed at step 2: No space left.*goes on") as warned:
                monitor.log(step, loss=loss)
        else:
            monitor.log(step, loss=loss)
    monitor.close()
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert ([step for step, _ in first.kept], [step for step, _ in second.kept]) == ([1, 3], [1, 2, 3])
    assert (first.closed, second.closed) == (1, 1)
