"""The comparison from data to table: the same after a violent end, and the same whatever the number of workers."""

import signal
import time

import pytest

from flatmin.errors import ArgumentError
from flatmin_lab.compare import assemble, check, compare
from flatmin_lab.methods import METHODS
from flatmin_lab.plan import Planned
from flatmin_lab.spec import Comparison
from flatmin_lab.store import Store
from flatmin_lab.sweep import Finished
from small_runs import asked, finish, start, without_seconds


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "runs"
    with Store(folder) as store:
        return compare(asked(seeds=3), store, workers=1)


def test_everything_asked_for_is_there(uninterrupted):
    assert [(r.spec.method, r.spec.seed) for r in uninterrupted.results] == [
        *(("sgd", seed) for seed in range(3)),
        *(("sam", seed) for seed in range(3)),
    ]
    assert all(r.trace_stderr is not None and r.top_eigenvalue is not None for r in uninterrupted.results)
    assert [s.method for s in uninterrupted.selections] == ["sam"]
    assert [s.method for s in uninterrupted.surfaces] == ["sgd"]
    assert uninterrupted.environment["torch"]


def test_killed_and_started_again_it_ends_the_same(uninterrupted, tmp_path):
    folder = tmp_path / "runs"
    arguments = ("compare", "--methods", "sgd", "sam", "--tasks", "digits-clean", "--seeds", "3", "--budget", "4")
    process = start(*arguments, "--out", folder, "--workers", "2")
    end = time.monotonic() + 60
    while len(list(folder.rglob("result.json"))) < 4:
        assert time.monotonic() < end, finish(process)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    finish(process)
    done = [p.with_name("weights.safetensors") for p in folder.rglob("result.json")]  # the last file of a run
    kept = {p: p.stat().st_mtime_ns for p in done}
    assert 4 <= len(kept) < 3 + 2 * len(METHODS["sam"].grid) + 1

    status, output, errors = finish(start(*arguments, "--out", folder, "--workers", "2"))
    assert status == 0, errors
    assert "Test" in output
    again = Comparison.model_validate_json((folder / "comparison.json").read_bytes())
    environment = uninterrupted.environment
    assert without_seconds(again.model_copy(update={"environment": environment})) == without_seconds(uninterrupted)
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())


def test_a_finished_comparison_is_only_read(tmp_path):
    events = []
    with Store(tmp_path / "runs") as store:
        first = compare(asked(("sgd",)), store, workers=1, watch=events.append)
    assert sum(isinstance(e, Finished) for e in events) == 1
    events.clear()
    with Store(tmp_path / "runs") as store:
        assert compare(asked(("sgd",)), store, workers=1, watch=events.append) == first
        assert assemble(store.header().asked, store) == first
    assert all(isinstance(e, Planned) for e in events)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "there is no method"),
        ({"tasks": ()}, "or no task"),
        ({"methods": ("sgdd",)}, r"method is 'sgdd'.*'wpsgd'.*Did you mean 'sgd'"),
        ({"tasks": ("digits",)}, r"task is 'digits'.*Did you mean"),
        ({"seeds": 0}, "seeds is 0"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": 7}, r"budget is 7.*multiple of 2, such as 8"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(changes, message):
    with pytest.raises(ArgumentError, match=message):
        check(asked(**changes), workers=1)


def test_workers_below_one():
    with pytest.raises(ArgumentError, match="workers is 0"):
        check(asked(), workers=0)
