"""One run: its configuration from file and flags, its folder, and what is said of what cannot work."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flatmin.errors import ArgumentError, RankError
from flatmin_lab import cli, run
from flatmin_lab.commands.train import MethodFlags, Train
from flatmin_lab.data.splits import Split, Splits
from flatmin_lab.errors import LabError, LockedError, StoreError
from flatmin_lab.lock import FolderLock
from flatmin_lab.methods import METHODS
from flatmin_lab.spec import Changes, RunResult, RunSpec
from flatmin_lab.tasks import TASKS
from flatmin_lab.train.checkpoint import Checkpoints, KeptCheckpoints
from flatmin_lab.train.config import MethodConfig, TrainConfig, read_config
from flatmin_lab.train.folder import RunFolder, read_metrics
from flatmin_lab.train.ranks import told_by_rank
from launch import require_success
from small_runs import ENVIRONMENT, VALUES, driven, run_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits.toml"
FILE = """
task = "digits-tiny"
budget = 8

[method]
name = "nso"
sigma = 0.05
"""
FLAGS = ("--task", "digits-tiny", "--method.name", "nso", "--method.sigma", "0.05", "--budget", "8")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


def flatmin(capsys, *arguments):
    """Run the command here: its exit status, standard output and standard error."""
    status = cli.main(["train", *map(str, arguments)])
    return status, *capsys.readouterr()


# --- the configuration ---


def test_every_field_is_a_flag():
    def names(kind, *without):
        return [f.name for f in dataclasses.fields(kind) if f.name not in without]

    assert names(Train, "file", "out", "json") == list(TrainConfig.model_fields)
    assert names(MethodFlags) == list(MethodConfig.model_fields)


def test_flags_win_over_the_file(file):
    flags = {"seed": 3, "method": {"sigma": 0.02}, "changes": {"learning_rate": 0.1}}
    assert read_config(file, flags).spec == RunSpec(
        task="digits-tiny", method="nso", value=0.02, seed=3, budget=8, changes=Changes(learning_rate=0.1)
    )


def test_a_flag_that_names_another_method_sets_the_files_hyperparameter_aside(file):
    assert read_config(file, {"method": {"name": "sam", "rho": 0.5}}).spec.value == 0.5
    assert read_config(file, {"method": {"name": "sgd"}}).spec.value is None
    assert read_config(file, {"method": {"name": "nso"}}).spec.value == 0.05


def test_what_is_written_says_the_same(file, tmp_path):
    config = read_config(file, {"method": {"sigma": 1e-5}, "changes": {"augmentation": "flip", "batch_size": 3}})
    (tmp_path / "again.toml").write_text(config.toml())
    assert read_config(tmp_path / "again.toml", {}) == config


def test_the_example_is_a_run():
    config = read_config(EXAMPLE, {})
    config.check()
    assert config.spec.name == "digits-noisy/nso-0.05+learning_rate=0.02/seed0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = 3", r"run\.toml: a field is 'seeds'.*'changes\.learning_rate'.*Did you mean 'seed'"),
        ("changes.lerning_rate = 3", r"a field is 'changes\.lerning_rate'.*Did you mean 'changes\.learning_rate'"),
        ('budget = "many"', r"run\.toml: budget is 'many'\. Input should be a valid integer"),
        ("budget = 8.5", r"budget is 8\.5"),
        ("checkpoint_seconds = -1", r"checkpoint_seconds is -1\. Input should be greater than or equal to 0"),
        ('parallel = "dpp"', r"parallel is 'dpp'\. Input should be 'none', 'ddp' or 'fsdp'"),
        ("changes = 3", r"changes is 3, but it is a table.*\[changes\]"),
        ("budget = ", r"run\.toml is no TOML.*Mend"),
    ],
)
def test_a_file_that_says_nonsense(file, text, message):
    lines = [line for line in FILE.splitlines() if not line.startswith(text.split(" =")[0])]
    file.write_text("\n".join([text, *lines]))
    with pytest.raises(ArgumentError, match=message):
        read_config(file, {})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, r"the flags: task is not given.*--task"),
        ({"task": "digits-tiny"}, r"method\.name is not given.*--method\.name.*Methods: sgd, wpsgd, nso"),
        ({"task": "digits-tiny", "method": {"name": "nos"}}, r"method is 'nos'.*Did you mean 'nso'"),
        (
            {"task": "digits-tiny", "method": {"name": "nso", "rho": 0.1}},
            r"method\.rho is 0\.1.*is sigma.*method\.sigma",
        ),
        ({"task": "digits-tiny", "method": {"name": "sgd", "rho": 0.1}}, r"'sgd', and it has no hyper.*Leave it out"),
        (
            {"task": "digits-tiny", "method": {"name": "sam"}},
            r"its rho is not given.*--method\.rho.*0\.1, 0\.2, 0\.5, 1",
        ),
        ({"task": "digits-tny", "method": {"name": "sgd"}}, r"task is 'digits-tny'.*Did you mean 'digits-tiny'"),
        ({"task": "digits-tiny", "method": {"name": "nso", "sigma": 1.0}, "budget": 7}, r"budget is 7.*such as 8"),
    ],
)
def test_flags_that_say_nonsense(flags, message):
    with pytest.raises(ArgumentError, match=message):
        read_config(None, flags).check()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ArgumentError, match=r"no\.toml cannot be read: No such file.*or none and give flags alone"):
        read_config(tmp_path / "no.toml", {})


# --- the folder ---


def test_a_run_has_the_numbers_of_the_engine_and_the_layout_of_a_run_among_others(file, tmp_path, capsys):
    out = tmp_path / "out"
    status, output, _ = flatmin(capsys, file, "--out", out, "--json")
    assert status == 0
    printed = json.loads(output)
    result = RunResult.model_validate_json((out / "result.json").read_bytes())
    assert printed == {**result.model_dump(mode="json"), "folder": str(out)}
    expected = driven(run.train(run_spec("nso", task="digits-tiny")))[1].result
    left_out = {"seconds", "trace", "trace_stderr", "top_eigenvalue", "top_eigenvalue_residual", "authors_lambda"}
    assert result.model_dump(exclude=left_out) == expected.model_dump(exclude=left_out)
    assert result.trace_stderr is not None
    assert read_metrics(out) == list(result.history)
    assert RunSpec.model_validate_json((out / "spec.json").read_bytes()) == result.spec
    assert json.loads((out / "environment.json").read_bytes())["torch"]
    assert read_config(out / "config.toml", {}) == read_config(file, {})
    assert not (out / "checkpoint.pt").exists()


def test_measure_and_certify_take_the_folder(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flatmin(capsys, file, "--out", "out", "--measure", "False")
    assert cli.main(["measure", "out", "--trace", "--examples", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["data"] == "digits-tiny"
    assert cli.main(["certify", "out", "--sigma", "0.1", "--passes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["what"] == "digits-tiny/nso-0.05/seed0"


def test_a_finished_run_is_printed_again_and_never_retrained(file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    _, before, _ = flatmin(capsys, file, "--out", out)
    when = (out / "weights.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("flatmin_lab.train.single.train", None)
    monkeypatch.setattr("flatmin_lab.train.single.execute", None)
    assert flatmin(capsys, *FLAGS, "--out", out)[:2] == (0, before)
    assert (out / "weights.safetensors").stat().st_mtime_ns == when
    assert "test accuracy" in before
    assert f"Folder: {out}" in before


def test_curvature_that_was_left_out_is_measured_later_without_training(file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert json.loads(flatmin(capsys, file, "--out", out, "--measure", "False", "--json")[1])["trace"] is None
    monkeypatch.setattr("flatmin_lab.train.single.train", None)
    assert json.loads(flatmin(capsys, file, "--out", out, "--json")[1])["trace"] > 0


def test_flags_alone_go_into_a_folder_named_by_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flatmin(capsys, *FLAGS)[0] == 0
    (found,) = Path("runs/train").rglob("result.json")
    assert found.parent.relative_to("runs/train").as_posix().startswith("digits-tiny/nso-0.05/seed0-")


def test_a_damaged_result_is_reported_and_made_again(file, tmp_path, capsys):
    out = tmp_path / "out"
    flatmin(capsys, file, "--out", out)
    (out / "weights.safetensors").write_bytes(b"no")
    status, _, errors = flatmin(capsys, file, "--out", out)
    assert status == 0
    assert "is run again: its weights cannot be read" in " ".join(errors.split())


def test_a_folder_of_something_else(file, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    status, _, errors = flatmin(capsys, file, "--out", out)
    assert (status, "holds other files (thesis.tex, ...)" in errors) == (2, True)
    (out / "thesis.tex").unlink()
    flatmin(capsys, file, "--out", out)
    status, _, errors = flatmin(capsys, file, "--out", out, "--seed", "1")
    assert status == 2
    assert "was begun for another run: seed is 0 there and 1 here. Choose another folder with --out" in errors
    (out / "config.toml").write_text("task = ")
    with RunFolder(out) as store, pytest.raises(StoreError, match=r"config\.toml cannot be read.*--out"):
        store.claim(read_config(file, {}))


def test_a_folder_in_which_nothing_was_done_takes_another_run(file, tmp_path):
    with RunFolder(tmp_path / "out") as store:
        store.claim(read_config(file, {}))
        store.claim(read_config(file, {"seed": 1}))


def test_one_process_at_a_time(file, tmp_path):
    held = FolderLock(tmp_path)
    held.acquire()
    with pytest.raises(LockedError, match="in use by another process"), RunFolder(tmp_path):
        pass
    held.release()


def test_another_environment_is_told(file, tmp_path, capsys):
    out = tmp_path / "out"
    flatmin(capsys, file, "--out", out)
    here = json.loads((out / "environment.json").read_bytes())
    (out / "environment.json").write_text(json.dumps({**here, "torch": "1.0"}))
    assert "was begun with torch 1.0 (now" in " ".join(flatmin(capsys, file, "--out", out)[2].split())


def test_a_half_written_last_line_is_left_out(file, tmp_path, capsys):
    out = tmp_path / "out"
    flatmin(capsys, file, "--out", out)
    path = out / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert len(read_metrics(out)) == whole.count("\n") - 1
    path.write_text("nonsense\n" + whole)
    with pytest.raises(StoreError, match=r"metrics\.jsonl cannot be read"):
        read_metrics(out)


def test_a_run_that_diverges_is_kept_printed_and_ends_with_its_message(file, tmp_path, capsys, monkeypatch):
    former = TASKS["digits-tiny"]
    setting = dataclasses.replace(former.setting, learning_rate=1e6)
    monkeypatch.setitem(TASKS, "digits-tiny", dataclasses.replace(former, setting=setting))
    for _ in range(2):
        status, output, errors = flatmin(capsys, file, "--budget", "100", "--out", tmp_path / "out", "--json")
        assert (status, json.loads(output)["status"]) == (2, "diverged")
        assert "learning rate 1e+06 is too large" in errors


# --- going on ---

KILLED = ("sgd", "nso", "sam", "bsam", "nso-halves")

# Each run is a process of its own, which is killed when a few points of its history are there.
KILLER = """
import os, signal, sys, time
from pathlib import Path
from flatmin_lab import cli
# What is imported and read on the way is so once, for all children.
cli.main(["train", *sys.argv[2].split()[1:], "--out", sys.argv[1] + "/first"])
for line in sys.argv[2:]:
    name, *words = line.split()
    out = Path(sys.argv[1]) / name
    child = os.fork()
    if child == 0:
        cli.main(["train", *words, "--out", str(out)])
        os._exit(0)
    metrics, end = out / "metrics.jsonl", time.monotonic() + 30
    while not (out / "checkpoint.pt").exists() or metrics.read_text().count("\\n") < 5:
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


def command(name, budget):
    knob = METHODS[name].hyperparameter
    value = f"--method.{knob} {VALUES[name]}" if knob else ""
    return (
        f"--task digits-clean --method.name {name} {value} --budget {budget} --checkpoint-seconds 0.03 --measure False"
    )


def assert_as_uninterrupted(folder, spec):
    expected = driven(run.train(spec))[1]
    found = load_file(folder / "weights.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.weights.items())
    result = RunResult.model_validate_json((folder / "result.json").read_bytes())
    assert result.model_dump(exclude={"seconds"}) == expected.result.model_dump(exclude={"seconds"})
    assert read_metrics(folder) == list(expected.result.history)
    assert not (folder / "checkpoint.pt").exists()


def test_killed_runs_go_on_and_end_bit_for_bit_as_uninterrupted_ones(tmp_path, capsys, monkeypatch):
    lines = [f"{name} {command(name, 80)}" for name in KILLED]
    words = [sys.executable, "-W", "ignore", "-c", KILLER, str(tmp_path), *lines]
    subprocess.run(words, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, check=True, timeout=120)
    begun = []
    monkeypatch.setattr(
        "flatmin_lab.train.progress.RunBar.begin", lambda _, spec, evaluations, past: begun.append(evaluations)
    )
    for name in KILLED:
        assert not (tmp_path / name / "result.json").exists()
        assert (tmp_path / name / "checkpoint.pt").exists()
        status, _, errors = flatmin(capsys, *command(name, 80).split(), "--out", tmp_path / name)
        assert status == 0, errors
        assert_as_uninterrupted(tmp_path / name, run_spec(name, budget=80))
    assert len(begun) == len(KILLED)
    assert all(0 < evaluations < 80 for evaluations in begun)


class Captured(Checkpoints):
    """Keeps the state after some step, as a file holds it."""

    def __init__(self, step):
        self.step, self.content = step, None

    def is_due(self):
        self.step -= 1
        return self.step == 0

    def save(self, state):
        self.content = io.BytesIO()
        torch.save(state, self.content)

    def load(self):
        self.content.seek(0)
        return torch.load(self.content, weights_only=True)


def assert_goes_on(spec, step):
    captured = Captured(step)
    whole = driven(run.train(spec, checkpoints=captured))[1]
    points, rest = driven(run.train(spec, state=captured.load()))
    assert all(torch.equal(rest.weights[name], tensor) for name, tensor in whole.weights.items())
    assert rest.result.model_dump(exclude={"seconds"}) == whole.result.model_dump(exclude={"seconds"})
    assert len(points) < len(whole.result.history)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_bit_for_bit(name):
    """The checkpoint lies in the middle of the second epoch of eight batches."""
    steps = 20
    assert_goes_on(run_spec(name, budget=steps * METHODS[name].evaluations_per_step), step=11)


@pytest.fixture
def images(monkeypatch):
    """Digits as images before a network with dropout and running statistics."""

    def load(seed):
        splits = TASKS["digits-tiny"].load(seed)
        return Splits(*(Split(s.inputs.view(-1, 1, 8, 8), s.targets) for s in vars(splits).values()))

    def network():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 10))

    changed = dataclasses.replace(TASKS["digits-tiny"], name="images", load=load, network=network)
    monkeypatch.setitem(TASKS, "images", changed)


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("name", ["sgd", "nso", "sam"])
def test_augmentation_dropout_buffers_and_penalty_go_on_bit_for_bit(name):
    changes = Changes(augmentation="flip-crop", distance_penalty=0.3, weight_decay=0.01)
    assert_goes_on(run_spec(name, task="images", changes=changes, budget=24), step=7)


def test_checkpoints_are_made_as_often_as_asked(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    kept = KeptCheckpoints(tmp_path, seconds=30)
    assert not kept.is_due()
    now[0] += 30
    assert kept.is_due()
    kept.save({"steps": 3})
    assert not kept.is_due()
    assert kept.load() == {"steps": 3}
    kept.clear()
    assert kept.load() is None
    kept.clear()


def test_a_checkpoint_that_cannot_be_read_is_told_and_training_begins_again(file, tmp_path, capsys):
    out = tmp_path / "out"
    flatmin(capsys, file, "--out", out)
    (out / "result.json").unlink()
    (out / "checkpoint.pt").write_bytes(b"half")
    status, _, errors = flatmin(capsys, file, "--out", out, "--measure", "False")
    assert status == 0
    assert "checkpoint.pt is made again: it cannot be read." in " ".join(errors.split())
    assert_as_uninterrupted(out, run_spec("nso", task="digits-tiny"))


def test_a_checkpoint_of_other_code_is_not_gone_on_from(tmp_path, monkeypatch):
    kept = KeptCheckpoints(tmp_path, seconds=0)
    kept.save({})
    monkeypatch.setattr("flatmin_lab.train.checkpoint.code_digest", lambda: "other")
    with pytest.raises(StoreError, match=r"checkpoint\.pt was made by other code.*delete the file to begin again"):
        kept.load()


# --- several processes ---


def test_two_ranks_equal_one_process(tmp_path):
    """Replicas and shards, whole and resumed: see train_ranks.py."""
    require_success("train_ranks.py", tmp_path)


def test_a_process_that_torchrun_did_not_start(capsys, tmp_path):
    status, _, errors = flatmin(capsys, *FLAGS, "--parallel", "ddp", "--out", tmp_path / "out")
    assert status == 2
    assert "parallel is 'ddp', but torchrun did not start this process" in errors
    assert "torchrun --nproc-per-node 2 -m flatmin_lab train RUN.toml --parallel ddp" in errors
    assert not (tmp_path / "out").exists()


def test_processes_that_would_make_the_same_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, errors = flatmin(capsys, *FLAGS, "--out", tmp_path)
    assert status == 2
    assert "torchrun started 2 processes, but parallel is 'none'" in errors


def test_messages_say_whose_they_are(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(LabError, match=r"^rank 1: value is 3\.$"), told_by_rank():
        raise ArgumentError("value is 3.")
    with pytest.raises(SystemExit) as caught, told_by_rank():
        raise RankError("another rank failed.")
    assert caught.value.code == 2
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RankError), told_by_rank():
        raise RankError("another rank failed.")


def test_shards_have_no_curvature_along_the_way(file, monkeypatch):
    former = TASKS["digits-tiny"]
    along = dataclasses.replace(former.measuring, along=0.01)
    monkeypatch.setitem(TASKS, "digits-tiny", dataclasses.replace(former, measuring=along))
    with pytest.raises(ArgumentError, match=r"parallel is 'fsdp'.*'digits-tiny' measures curvature.*--parallel ddp"):
        read_config(file, {"parallel": "fsdp"}).check()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_is_killed_goes_on_and_ends_as_one_process(parallel, tmp_path):
    out = tmp_path / "out"
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["train", *FLAGS[:-1], "400", "--parallel", parallel, "--checkpoint-seconds", "0.1", "--out", out, "--json"]
    run_all = [*torchrun, "-m", "flatmin_lab", *map(str, words)]
    process = subprocess.Popen(run_all, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not (out / "checkpoint.pt").exists() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(int((out / ".lock").read_text()), signal.SIGKILL)  # the first rank
    assert process.wait(timeout=120) != 0  # and torchrun ends the other
    assert not (out / "result.json").exists()
    done = subprocess.run(run_all, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gradient_evaluations"] == 400
    assert json.loads((out / "environment.json").read_bytes())["ranks"] == f"2 ({parallel})"
    expected = driven(run.train(run_spec("nso", task="digits-tiny", budget=400)))[1]
    found = load_file(out / "weights.safetensors")
    assert all(torch.allclose(found[k], v, rtol=1e-3, atol=1e-4) for k, v in expected.weights.items())
