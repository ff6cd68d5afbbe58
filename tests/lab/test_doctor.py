"""The doctor, on made-up machines: packages that break, drivers that do not fit, clusters that do not answer."""

import json
import math
import os
import socket
import subprocess
import sys
from typing import NamedTuple

import pytest

from flatmin_lab import cli, doctor
from flatmin_lab.doctor import clusters, data, finding, machine, packages, torch_itself
from flatmin_lab.doctor.probe import Answer, ask, said
from small_runs import ENVIRONMENT

NMS = 'raise RuntimeError("operator torchvision::nms does not exist")'


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that Python, here and in other processes, looks into before all others."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]]))
    monkeypatch.syspath_prepend(folder)
    return folder


def install(site, name, version="1.0", code="", requires=(), extras=()):
    """Put a package there, with its metadata; one without code is metadata alone."""
    about = site / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {line}" for line in requires]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    if code is not None:
        package = site / name.replace("-", "_")
        package.mkdir()
        (package / "__init__.py").write_text(code)
        (about / "RECORD").write_text(f"{package.name}/__init__.py,,\n")


def one(findings):
    (found,) = findings
    return found


# --- other processes


def test_what_a_module_prints_is_no_answer_and_what_kills_the_process_is_named(site):
    (site / "loud.py").write_text('print(\'{"module": "loud", "error": "a lie"}\')')
    (site / "leaves.py").write_text("raise SystemExit(3)")
    (site / "crashes.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    answer = ask("importing", "loud", "leaves", "crashes", "never")
    assert packages._errors(answer) == {"leaves": "SystemExit: 3", "crashes": "the process was ended by SIGILL"}


def test_what_hangs_is_ended(site):
    (site / "hangs.py").write_text("import time\ntime.sleep(600)")
    answer = ask("importing", "hangs", seconds=1)
    assert answer.fault == "did not end within 1 s"


def test_programs_that_fail_are_put_into_words():
    assert said(sys.executable, "-c", "print(1)") == ("1", "")
    assert said("/no/such/program")[1].startswith("cannot be run (No such file")
    assert said(sys.executable, "-c", "import sys; sys.exit('why')")[1] == "ended with status 1: why"
    assert said(sys.executable, "-c", "import time; time.sleep(60)", seconds=0.2)[1] == "did not answer within 0.2 s"


# --- packages


def test_a_broken_torchvision_is_found_with_what_it_was_made_for_and_how_to_be_rid_of_it(site):
    install(site, "torchvision", "0.21.0", NMS, requires=["numpy", "torch==2.6.0"])
    found = next(f for f in packages.check_torchvision() if "torchvision" in f.found)
    assert found.status == "problem"
    assert "torchvision 0.21.0 (made for torch==2.6.0) is installed, but cannot be imported" in found.found
    assert "RuntimeError: operator torchvision::nms does not exist" in found.found
    assert "`import transformers`" in found.cause
    assert found.remedy == "pip uninstall --yes torchvision"


def test_a_torchvision_that_works_or_is_not_there_is_well(site):
    install(site, "torchaudio", "2.0")
    vision, audio = packages.check_torchvision()
    assert (vision.status, audio.status) == ("ok", "ok")
    assert "not installed, and nothing here needs it" in vision.found
    assert audio.found == "torchaudio 2.0 can be imported."


def test_every_extra_is_compared_with_what_is_installed(site):
    requires = ["whole>=1", "lacking; extra == 'lab'", "whole; extra == 'lab'", "old>=2; extra == 'hf'"]
    requires += ["absent; extra == 'track'", "broken; extra == 'graph'", "flatmin[graph]; extra == 'all'"]
    requires += ["windows; extra == 'lab' and sys_platform == 'no such system'", "broken; extra == 'dev'"]
    install(site, "flatmin", "9.0", None, requires, extras=("lab", "hf", "track", "graph", "all", "dev"))
    install(site, "whole", "1.5")
    install(site, "old", "1.0", "raise SystemExit('imported, though it does not fit')")
    install(site, "broken", "1.0", NMS)
    told = [(f.status, f.found, f.remedy) for f in packages.check_extras() if "malicious" not in f.found]
    broken = "broken is installed, but cannot be imported: RuntimeError: operator torchvision::nms does not exist"
    again = "pip install --force-reinstall broken"
    assert told == [
        ("ok", "flatmin: whole 1.5.", ""),
        ("problem", "flatmin[lab] lacks lacking.", "pip install 'flatmin[lab]'"),
        ("note", "flatmin[hf] needs old>=2, and 1.0 is here.", "pip install 'old>=2'"),
        ("note", "flatmin[track] is not installed: absent.", "pip install 'flatmin[track]'"),
        ("problem", f"flatmin[graph]: {broken}", again),
        ("problem", f"flatmin[all]: {broken}", again),
        ("ok", "flatmin[dev]: broken 1.0.", ""),
    ]


def test_a_malicious_release_is_named_and_never_imported(site, tmp_path):
    mark = tmp_path / "imported"
    install(site, "flatmin", "9.0", None, ["lightning>=2.6.6; extra == 'lightning'"], extras=("lightning",))
    install(site, "lightning", "2.6.3", f"open({str(mark)!r}, 'w')")
    *_, found = packages.check_extras()
    assert found.status == "problem"
    assert "lightning 2.6.3 is a malicious release" in found.found
    assert found.remedy.startswith("pip uninstall --yes lightning")
    assert not mark.exists()


def test_a_python_that_is_too_old_and_a_flatmin_that_is_not_installed(site, monkeypatch):
    install(site, "flatmin", "9.0", None)
    (site / "flatmin-9.0.dist-info/METADATA").write_text("Name: flatmin\nVersion: 9.0\nRequires-Python: >=4\n")
    assert "flatmin needs >=4" in one(packages.check_python()).found

    def lost(name):
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "metadata", lost)
    assert [f.status for f in packages.check_python()] == ["ok", "note"]
    assert list(packages.check_extras()) == []


# --- torch and its devices


def facts(**changes):
    plain = {"version": "2.9", "file": "torch.py", "cuda": None, "hip": None, "threads": 2, "numpy": "", "mps": ""}
    return {**plain, "devices": 0, "architectures": [], "cuda_error": "", "warnings": [], **changes}


def examined(monkeypatch, *lines, fault="", driver=None, visible=None):
    monkeypatch.setattr(torch_itself, "ask", lambda name: Answer(lines, fault))
    monkeypatch.setattr(torch_itself, "_driver", lambda: driver or {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return list(torch_itself.check_torch())


DRIVER = {"version": "535.1", "cuda": "12.2"}


@pytest.mark.parametrize(
    ("changes", "given", "status", "says", "remedy"),
    [
        ({}, {}, "ok", "No NVIDIA driver is here", ""),
        ({}, {"driver": DRIVER}, "problem", "built for the CPU alone", "/whl/cu118"),
        ({"cuda": "12.8"}, {}, "note", "no NVIDIA driver is here", "/whl/cpu"),
        ({"cuda": "12.8"}, {"driver": DRIVER, "visible": ""}, "note", "CUDA_VISIBLE_DEVICES is ''", "unset CUDA_VIS"),
        ({"cuda": "13.0", "cuda_error": "RuntimeError: old"}, {"driver": DRIVER}, "problem", "old", "/whl/cu118"),
        ({"cuda": "12.8", "warnings": ["unknown error"]}, {"driver": DRIVER}, "problem", "unknown error", "modprobe"),
        ({"hip": "6.2"}, {}, "problem", "built for ROCm, but reaches no device", "usermod"),
    ],
)
def test_a_machine_without_a_device_that_answers(changes, given, status, says, remedy, monkeypatch):
    build, found = examined(monkeypatch, facts(**changes), **given)
    assert build.status == "ok"
    assert found.status == status
    assert says in found.found
    assert remedy in found.remedy


def test_devices_that_compute_and_those_that_do_not(monkeypatch):
    about = {"name": "G", "capability": [6, 1], "memory": 2**33, "error": "no kernel image", "free": 0}
    devices = [
        {"device": 0, **about, "capability": [8, 6], "error": "", "free": 2**31},
        {"device": 1, **about},
        {"device": 2, **about, "capability": [8, 6], "error": "out of memory"},
        {"device": 3, "error": "it fell off the bus"},
    ]
    build = facts(cuda="12.8", devices=4, architectures=["sm_80", "compute_90"])
    _, good, old, full, gone = examined(monkeypatch, build, *devices)
    assert (good.status, good.found) == ("ok", "cuda:0, G, 8 GiB, capability 8.6: computes; 2.0 GiB are free.")
    assert "code for sm_80, compute_90 alone" in old.cause
    assert "another process holds its memory" in full.cause
    assert "fell off the bus" in gone.found


def test_binaries_run_within_their_major_version_and_ptx_on_what_is_newer():
    built = ["sm_75", "sm_80", "compute_90"]
    assert [torch_itself.runs_on(built, *c) for c in ((7, 0), (7, 5), (8, 9), (9, 0), (12, 0))] == [
        *(False, True, True, True, True),
    ]


def test_torch_that_is_missing_broken_or_half_there(monkeypatch):
    assert one(examined(monkeypatch, {"error": "ModuleNotFoundError", "missing": True})).remedy == "pip install torch"
    broken = one(examined(monkeypatch, {"error": "ImportError: libcudnn.so.9: cannot open", "missing": False}))
    assert "libraries of CUDA" in broken.cause
    assert "lacks instructions" in one(examined(monkeypatch, fault="was ended by SIGILL")).cause
    *_, died = examined(monkeypatch, facts(), fault="was ended by SIGSEGV")
    assert "SIGSEGV while it looked at the devices" in died.found
    _, bridge, _ = examined(monkeypatch, facts(numpy="RuntimeError: Numpy is not available"))
    assert (bridge.status, bridge.remedy) == ("problem", "pip install --upgrade torch numpy")
    *_, apple = examined(monkeypatch, facts(mps="torch is built without it"))
    assert apple.status == "note"


def test_the_driver_is_asked_by_its_own_program(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "nvidia-smi", "echo '| Driver Version: 550.54.15    CUDA Version: 12.4 |'")
    assert torch_itself._driver() == {"version": "550.54.15", "cuda": "12.4"}
    assert torch_itself._index({"cuda": "12.5"}) == "cu124"
    assert torch_itself._index({"cuda": "10.2"}) == ""


def program(folder, monkeypatch, name, script):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(path.parent), os.environ["PATH"]]))


# --- the machine


def test_limits_of_containers_of_both_kinds(tmp_path):
    assert machine.cpu_quota(tmp_path) == machine.memory_limit(tmp_path) == math.inf
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cpu_quota(tmp_path) == machine.memory_limit(tmp_path) == math.inf
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert (machine.cpu_quota(tmp_path), machine.memory_limit(tmp_path)) == (2.5, 2**30)


def test_more_threads_than_the_container_has_time_for(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**29}\n")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    notes = {f.remedy: f.found for f in machine.check_machine() if f.status == "note"}
    assert "OMP_NUM_THREADS is 64, and there are 0.5 cores" in notes["export OMP_NUM_THREADS=1"]
    assert "the container may take 0.5" in notes["docker run --memory=8g ..."]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(("free", "status"), [(2**40, "ok"), (2**30, "note"), (2**20, "problem")])
def test_what_the_disk_has_left(free, status, tmp_path, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(2**41, 0, free))
    assert one(machine.check_folder(tmp_path / "not/made")).status == status
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "is a file" in one(machine.check_folder(tmp_path / "file/runs")).found

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refused)
    found = one(machine.check_folder(tmp_path))
    assert (found.status, found.remedy) == ("problem", "flatmin compare --out ~/runs")
    assert "Permission denied" in found.found


# --- data


def test_a_data_root_that_is_not_named_not_there_a_file_empty_unreadable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    told = [data._root(name) for name in ("", *(str(tmp_path / n) for n in ("nowhere", "file", "empty", ".")))]
    assert [f.status for f in told] == ["note", "problem", "problem", "note", "ok"]

    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.os, "scandir", refused)
    found = data._root(str(tmp_path))
    assert (found.status, "Permission denied" in found.found, "chmod" in found.remedy) == ("problem", True, True)


def test_what_is_missing_is_told_once_with_all_that_wants_it(tmp_path):
    (tmp_path / "resnet20_cifar10.safetensors").write_text("")
    told = list(data.check_data(tmp_path))
    missing = {f.found.partition(":")[0]: f for f in told if ": missing, for" in f.found}
    jpeg = missing.pop("cifar10_jpeg75.npz")
    assert "cifar10-jpeg75-resnet20, " in jpeg.found
    assert "cifar10-jpeg75-pairs" in jpeg.found
    assert jpeg.remedy.startswith(f"under {tmp_path}, put CIFAR-10")
    assert "resnet20_cifar10.safetensors" not in missing
    assert "indoor67/TrainImages.txt, indoor67/TestImages.txt" in missing
    assert any(f.status == "ok" and "can be made at size toy" in f.found for f in told)
    small = next(f for f in told if "can be made at size small" in f.found)
    assert (small.status, "nso.table3" in small.found) == ("note", True)


def test_a_look_that_breaks_off_is_a_problem(monkeypatch):
    monkeypatch.setattr(data, "ask", lambda *_: Answer((), "was ended by SIGSEGV"))
    assert "SIGSEGV" in next(f for f in data.check_data(None) if f.status == "problem").found


# --- clusters


@pytest.mark.parametrize(
    ("address", "error", "says", "remedy"),
    [
        ("ray://a:10001", None, "Ray Client", "ray job submit"),
        ("nonsense", None, "is no address", "export RAY_ADDRESS=HOST:6379"),
        ("a:99999", None, "is no address", "export RAY_ADDRESS=HOST:6379"),
        ("a:6379", socket.gaierror(-2, "unknown"), "no machine is called a", "ping a"),
        ("a:6379", TimeoutError(), "nothing answered within 5 s", "unset RAY_ADDRESS"),
    ],
)
def test_an_address_of_ray_that_cannot_be(address, error, says, remedy, monkeypatch):
    def connect(*_, **__):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(clusters.socket, "create_connection", connect)
    found = one(clusters._ray())
    assert (found.status, says in found.found, remedy in found.remedy) == ("problem", True, True)


def test_a_port_at_which_nothing_listens(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        port = taken.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        found = one(clusters._ray())
    assert (found.status, found.remedy) == ("problem", f"ray start --head --port={port}")
    assert "Connection refused" in found.found


def test_what_joining_a_cluster_says(monkeypatch):
    told = []
    monkeypatch.setattr(clusters, "ask", lambda *a, **k: Answer(tuple(told), "did not end within 60 s"))
    assert "did not end within 60 s" in clusters._joined("auto").found
    told.append({"error": "RuntimeError: Version mismatch"})
    assert "Version mismatch" in clusters._joined("auto").found
    told.append({"nodes": 3, "cpus": 12.0, "gpus": 0})
    assert clusters._joined("auto") == finding.ok("The Ray cluster at auto has 3 nodes, 12 cores and 0 GPUs.")
    monkeypatch.setattr(clusters, "find_spec", lambda _: None)
    assert clusters._joined("auto").remedy == "pip install 'flatmin[cluster]'"


def test_slurm(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "sbatch", "echo slurm 25.05")
    program(tmp_path, monkeypatch, "scontrol", "echo 'down' >&2; exit 1")
    assert one(clusters._slurm()).found == (
        "slurm 25.05 is here, but its controller does not answer: scontrol ended with status 1: down."
    )
    program(tmp_path, monkeypatch, "scontrol", "true")
    assert one(clusters._slurm()) == finding.ok("slurm 25.05 answers.")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert one(clusters._slurm()).status == "ok"


# --- all of it


def test_where_torch_itself_is_broken_all_else_is_still_said(site, tmp_path):
    """The whole command, as someone runs it whose torch cannot be imported."""
    install(site, "torch", "2.9.0", "raise OSError('libcudart.so.12: cannot open shared object file')")
    env = {**ENVIRONMENT, "PYTHONPATH": os.environ["PYTHONPATH"]}
    command = [sys.executable, "-m", "flatmin_lab.doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert told["problems"] == sum(f["status"] == "problem" for f in told["findings"]) >= 2
    (torch_found,) = (f for f in told["findings"] if f["subject"] == "torch")
    assert "OSError: libcudart.so.12" in torch_found["found"]
    assert torch_found["remedy"] == "pip install --force-reinstall torch"
    assert all(f["remedy"] and f["cause"] for f in told["findings"] if f["status"] != "ok")
    assert {f["subject"] for f in told["findings"]} >= {"Python", "Beside torch", "Machine", "Runs", "Data", "Clusters"}


def quiet(monkeypatch, problems):
    found = [finding.ok("fine."), *[finding.problem("bad.", "bad luck.", "mend it")] * problems]
    for module, name in (
        *((packages, n) for n in ("check_python", "check_torchvision", "check_extras")),
        *((torch_itself, "check_torch"), (machine, "check_machine"), (machine, "check_folder")),
        *((data, "check_data"), (clusters, "check_clusters")),
    ):
        monkeypatch.setattr(module, name, lambda *_, found=found if name == "check_torch" else found[:1]: found)


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(monkeypatch):
    quiet(monkeypatch, 0)

    def fails():
        yield finding.ok("this far.")
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(machine, "check_machine", fails)
    found = doctor.examine()
    (section,) = (s for s in found.sections if s.subject == "Machine")
    assert [f.status for f in section.findings] == ["ok", "problem"]
    assert "ZeroDivisionError: a defect" in section.findings[1].found
    assert found.problems == 1


def test_the_command_prints_each_finding_with_its_remedy_and_ends_with_1_where_there_is_a_problem(monkeypatch, capsys):
    quiet(monkeypatch, 0)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nNo problem was found.\n")
    quiet(monkeypatch, 2)
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "torch\n  ok       fine.\n  PROBLEM  bad.\n" in printed
    assert "           Likely cause: bad luck.\n           Remedy: mend it\n" in printed
    assert printed.endswith("2 problems were found.\n")
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["problems"] == 2
