"""Workers: the same numbers however many, and an end for each that leaves nothing behind."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flatmin_lab.clusters.local import _interrupts_held
from flatmin_lab.errors import LabError, WorkerError
from flatmin_lab.job import Job
from flatmin_lab.sweep import Finished, Lost, Pool, Progressed, Started, Workers
from small_runs import finish, run_spec, start

JOBS = [Job(run_spec(name, seed, budget=40), measure=name == "nso") for name in ("sgd", "nso") for seed in (0, 1)]


def outcomes(events):
    found = {e.job.spec.name: e.outcome for e in events if isinstance(e, Finished)}
    return {name: (o.result.model_dump(exclude={"seconds"}), o.weights) for name, o in sorted(found.items())}


def test_results_do_not_depend_on_the_number_of_workers():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers(1) as pool:
            here = list(pool.run(JOBS))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    with Workers(2) as pool:
        there = list(pool.run(JOBS))
    assert outcomes(here) == outcomes(there)
    assert len(outcomes(here)) == len(JOBS)
    for events in (here, there):
        assert sum(isinstance(e, Started) for e in events) == len(JOBS)
        assert sum(isinstance(e, Progressed) for e in events) >= 20 * 4 // 2
    assert not multiprocessing.active_children()


LONG = Job(run_spec("sgd", budget=400_000))


def kill_the_worker():
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGKILL)
    return child.pid


def one_spawned_worker():
    pool = Workers(2)
    pool.count = 1  # spawned all the same, so that there is one process to kill
    return pool


def test_a_killed_worker_is_replaced_once_and_named():
    pool, seen = one_spawned_worker(), []
    with (
        pool,
        pytest.raises(WorkerError, match=r"killed by signal 9 \(SIGKILL\) while it ran.*tried 2 times.*--workers"),
    ):
        for event in Pool.run(pool, [LONG]):
            seen.append(event)
            if isinstance(event, Started):
                pid = kill_the_worker()
    assert [type(e) for e in seen] == [Started, Lost, Started]
    assert "digits-clean/sgd/seed0" in seen[1].message
    assert not Path(f"/proc/{pid}").exists()


def test_a_run_survives_the_loss_of_one_worker():
    pool, killed = one_spawned_worker(), False
    with pool:
        for event in Pool.run(pool, JOBS[:2]):
            if isinstance(event, Started) and not killed:
                kill_the_worker()
                killed = True
            last = event
    assert isinstance(last, Finished)
    with Workers(1) as here:
        assert outcomes([last])[last.job.spec.name] == outcomes(here.run([last.job]))[last.job.spec.name]


@pytest.mark.parametrize("count", [1, 2])
def test_errors_come_out_as_they_are(count):
    with Workers(count) as pool, pytest.raises(LabError if count == 2 else Exception, match="needs its sigma, rho"):
        list(pool.run([Job(run_spec("nso", value=None))]))


def test_an_interrupt_while_a_worker_starts_is_heard_after_it():
    handler, code = signal.getsignal(signal.SIGINT), "import signal as s; print(s.SIGINT in s.pthread_sigmask(0, ()))"
    with pytest.raises(KeyboardInterrupt):
        with _interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        raise AssertionError("the interrupt is lost")
    assert child.stdout == "True\n"
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_leaving_early_ends_the_workers():
    with Workers(2) as pool:
        assert isinstance(next(pool.run([LONG, LONG])), Started)
        assert multiprocessing.active_children()
    assert not multiprocessing.active_children()


def descendants(pid):
    """Processes whose parent is ``pid``, from Linux's own list."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def is_alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_leave_when_their_parent_is_killed(tmp_path):
    arguments = ("compare", "--methods", "sgd", "--seeds", "2", "--budget", "4000000", "--out", tmp_path / "out")
    parent = start(*arguments, "--workers", "2")
    try:
        until(lambda: len(descendants(parent.pid)) >= 2)
        workers = descendants(parent.pid)
        time.sleep(3)  # let them get to work
    finally:
        parent.kill()
        finish(parent)
    until(lambda: not any(map(is_alive, workers)))
