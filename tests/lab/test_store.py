"""The run folder: whole files or none, nothing foreign taken up, and one message for each disk that will not serve."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatmin_lab.errors import LockedError, StoreError
from flatmin_lab.files import explained, write_whole
from flatmin_lab.lock import FolderLock
from flatmin_lab.store import Store
from small_runs import ENVIRONMENT, asked, outcome, run_spec

SPEC = run_spec()


@pytest.fixture(scope="module")
def done():
    return outcome(SPEC, measure=True, surface=True)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def store(tmp_path, notes):
    with Store(tmp_path / "runs", notes.append) as entered:
        entered.begin(asked())
        yield entered


def reopened(store, notes):
    """The same folder as a later process finds it."""
    return Store(store.folder, notes.append)


def test_round_trip(store, done, notes):
    assert store.result(SPEC) is None
    store.save(done)
    later = reopened(store, notes)
    assert later.result(SPEC) == done.result
    assert later.surface(SPEC) == done.surface
    assert later.weights(SPEC).read_bytes() == done.weights
    assert not notes
    assert sorted(p.name for p in store.folder_of(SPEC).iterdir()) == [
        "environment.json",
        "result.json",
        "spec.json",
        "surface.json",
        "weights.safetensors",
    ]


@pytest.mark.parametrize("name", ["result.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"half of it"])
def test_damaged_file_is_reported_in_one_line_and_made_again(store, done, notes, name, damage):
    store.save(done)
    (store.folder_of(SPEC) / name).write_bytes(damage)
    later = reopened(store, notes)
    assert later.result(SPEC) is None
    assert len(notes) == 1
    assert "again" in notes[0]
    assert "\n" not in notes[0]
    later.save(done)
    assert later.result(SPEC) == done.result


def test_truncated_weights(store, done, notes):
    store.save(done)
    path = store.weights(SPEC)
    path.write_bytes(path.read_bytes()[:1000])
    assert reopened(store, notes).result(SPEC) is None
    assert "weights cannot be read" in notes[0]


def test_result_of_another_specification(store, done, notes):
    store.save(done)
    other = done.result.model_copy(update={"spec": run_spec(budget=10)})
    (store.folder_of(SPEC) / "result.json").write_text(other.model_dump_json())
    assert reopened(store, notes).result(SPEC) is None
    assert "another specification" in notes[0]


def test_damaged_surface_is_reported(store, done, notes):
    store.save(done)
    (store.folder_of(SPEC) / "surface.json").write_text("{")
    assert store.surface(SPEC) is None
    assert "surface.json is made again" in notes[0]


def test_runs_of_other_code_cannot_be_continued(store, monkeypatch):
    monkeypatch.setattr("flatmin_lab.header.code_digest", lambda: "f00d")
    with pytest.raises(StoreError, match=r"another version of flatmin.*: code is \w+ there and f00d here.*--out"):
        store.begin(asked())


def test_another_version_of_the_tasks_cannot_be_continued(store, monkeypatch):
    monkeypatch.setattr("flatmin_lab.tasks.VERSION", 99)
    with pytest.raises(StoreError, match=r"tasks version is \d+ there and 99 here. Choose another folder with --out"):
        store.begin(asked())


def test_more_seeds_methods_and_tasks_continue(store):
    more = asked(methods=("sgd", "nso"), tasks=("digits-clean", "digits-noisy"), seeds=9)
    store.begin(more)
    assert store.header().asked == more


def test_other_software_is_noted_and_the_first_is_recorded(store, notes, monkeypatch):
    former = store.header().environment
    monkeypatch.setattr("flatmin_lab.store.environment", lambda: {**former, "torch": "9.9"})
    store.begin(asked())
    assert len(notes) == 1
    assert "(now 9.9)" in notes[0]
    assert store.header().environment == former


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    with Store(tmp_path) as store, pytest.raises(StoreError, match=r"holds other files \(thesis.tex"):
        store.begin(asked())
    assert not (tmp_path / "compare.json").exists()


def test_unreadable_header(store):
    (store.folder / "compare.json").write_text("{")
    with pytest.raises(StoreError, match=r"compare.json cannot be read.*--out"):
        store.begin(asked())


def test_a_folder_without_comparison_is_not_made_for_reading(tmp_path):
    with (
        pytest.raises(StoreError, match=r"holds no comparison.*flatmin compare --out"),
        Store(tmp_path / "x", new=False),
    ):
        pass
    assert not (tmp_path / "x").exists()


def test_missing_runs_are_counted(store, done):
    store.save(done)
    with pytest.raises(StoreError, match=r"1 of 2 runs are missing.*digits-clean/sgd/seed1.*flatmin compare"):
        store.results([SPEC, run_spec(seed=1)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("name", ["weights.safetensors", "surface.json", "result.json"])
def test_full_disk_gives_one_message_and_keeps_what_is_finished(store, done, notes, name):
    store.save(done)
    kept = store.folder_of(SPEC) / name
    before = kept.read_bytes()
    kept.with_name(f".{name}.partial").symlink_to("/dev/full")  # the kernel itself says ENOSPC
    with pytest.raises(StoreError, match=r"No space left on device.*quota is full.*--out.*Finished results are kept"):
        store.save(done)
    assert kept.read_bytes() == before
    assert reopened(store, notes).result(SPEC) == done.result
    assert not list(store.folder.rglob("*.partial"))


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "out").write_text("")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with (
            pytest.raises(StoreError, match=r"Cannot write .*a file stands where a folder should be.*--out"),
            Store(folder),
        ):
            pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_read_only_folder(number):
    message = r"Cannot write out: .*read-only for you.*--out"
    with pytest.raises(StoreError, match=message), explained(Path("out"), "write"):
        raise OSError(number, os.strerror(number))


@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no folders on Linux")
def test_a_place_that_takes_no_folders():
    with pytest.raises(StoreError, match=r"Cannot write /sys/flatmin"), Store(Path("/sys/flatmin")):
        pass


def test_an_interrupted_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"former")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"latter")
    assert path.read_bytes() == b"former"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


HOLDER = """
import sys, time, pathlib
from flatmin_lab.lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_folder_and_a_dead_one_holds_nothing(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"in use by another process \(pid {holder.pid}\).*--out"):
            FolderLock(tmp_path).acquire()
    finally:
        holder.kill()
        holder.communicate()
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert (tmp_path / ".lock").read_text() == str(os.getpid())
    lock.release()


def test_the_lock_where_the_system_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr("flatmin_lab.lock.fcntl", None)
    lock = FolderLock(tmp_path)
    lock.acquire()
    with pytest.raises(LockedError, match=r"delete .*\.lock"):
        FolderLock(tmp_path).acquire()
    lock.release()
    lock.acquire()
    lock.release()
