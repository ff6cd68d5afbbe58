"""The command line: its options, its messages, its exit status, and what it writes where."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

import flatmin
from flatmin_lab import cli, commands
from flatmin_lab.data.examples import DATA
from flatmin_lab.methods import METHODS
from flatmin_lab.recipes.registry import CERTIFICATES
from flatmin_lab.spec import Changes
from flatmin_lab.tasks import TASKS
from small_runs import ENVIRONMENT, finish, start

SMALL = ("--methods", "sgd", "--tasks", "digits-clean", "--seeds", "1", "--budget", "2", "--workers", "1")


def test_commands_and_options_are_these():
    options = {c.__name__: [f.name for f in fields(c)] for c in commands.Command.__args__}
    assert options == {
        "Compare": [
            "methods",
            "tasks",
            "seeds",
            "budget",
            "out",
            "workers",
            "cluster",
            "slurm",
            "search",
            "device",
            "json",
        ],
        "Train": [
            "file",
            "task",
            "method",
            "budget",
            "seed",
            "device",
            "changes",
            "parallel",
            "measure",
            "checkpoint_seconds",
            "track",
            "out",
            "json",
        ],
        "Measure": [
            "weights",
            "trace",
            "eigenvalues",
            "density",
            "layers",
            "gap",
            "rtol",
            "max_products",
            "model",
            "head_seed",
            "data",
            "data_root",
            "split",
            "examples",
            "batch_size",
            "seed",
            "device",
            "out",
            "json",
        ],
        "Landscape": [
            "weights",
            "others",
            "directions",
            "dimensions",
            "unit",
            "points",
            "reach",
            "model",
            "head_seed",
            "data",
            "data_root",
            "split",
            "examples",
            "batch_size",
            "seed",
            "device",
            "out",
            "json",
        ],
        "Certify": ["what", "sigma", "delta", "passes", "seed", "data_root", "out", "json"],
        "Reproduce": ["name", "size", "seed", "out", "tasks", "runs", "list", "json"],
        "Report": ["folders", "out", "json"],
        "Doctor": ["runs", "data_root", "json"],
    }


HELP = """
import sys
from flatmin_lab.cli import main
try:
    main([sys.argv[1], "--help"])
finally:
    print("torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("compare", (*METHODS, *TASKS, "--methods", "--workers", "--json")),
        ("train", (*METHODS, *TASKS, "--method.sigma", "--changes.learning-rate", "--parallel")),
        ("certify", (*CERTIFICATES, "--sigma", "--delta", "--data-root")),
        ("landscape", ("--directions", "eigenvectors", "between", "--unit", "--reach", "FLATMIN_DATA")),
        ("measure", (*DATA, "--trace", "--eigenvalues", "--gap", "--data-root", "FLATMIN_DATA")),
    ],
)
def test_help_names_everything_there_is_and_loads_no_torch(command, names):
    words = [sys.executable, "-c", HELP, command]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.rstrip().endswith("False")
    for name in names:
        assert name in done.stdout


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{flatmin.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("compare", "--methods", "sgdd"), ("'sgdd'", "'wpsgd'", "Did you mean 'sgd'")),
        (("compare", "--tasks", "digits-nosy"), ("'digits-nosy'", "Did you mean 'digits-noisy'")),
        (("compare", "--methods"), ("there is no method",)),
        (("compare", "--seeds", "0"), ("seeds is 0",)),
        (("compare", "--seeds", "-1"), ("seeds is -1",)),
        (("compare", "--budget", "3"), ("budget is 3", "such as 4")),
        (("compare", "--workers", "0"), ("workers is 0",)),
        (("compare", "--device", "abacus"), ("device is 'abacus'", "--device cpu")),
        (("compare", "--out", "FILE"), ("FILE", "a file stands where a folder should be", "--out")),
        (("compare", "--out", "FILE/deeper"), ("deeper", "a file stands where a folder should be", "--out")),
        (("compare", "--out", "OTHER"), ("OTHER", "holds other files", "--out")),
        (("report", "NOWHERE"), ("NOWHERE holds no comparison", "flatmin compare --out")),
    ],
)
def test_bad_input_ends_with_one_message_and_status_2(arguments, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("")
    Path("OTHER").mkdir()
    Path("OTHER/thesis.tex").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(arguments) == cli.BAD_INPUT
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("flatmin: ")
    assert errors.count("\n") == 1
    assert all(part in errors for part in parts), errors
    assert [p for p in sorted(tmp_path.rglob("*")) if p.name != ".lock"] == before


@pytest.mark.parametrize("arguments", [("compare", "--seed", "3"), ("compare", "--seeds", "many"), ("compar",), ()])
def test_what_does_not_parse_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == cli.BAD_INPUT
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a small comparison, made by the real command, with what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    return folder, *finish(start("compare", *SMALL, "--out", folder, "--json"))


def test_json_alone_is_on_standard_output(finished):
    folder, status, output, errors = finished
    assert status == 0, errors
    result = json.loads(output)
    assert result["spec"] == {
        "arms": [
            {
                "task": "digits-clean",
                "method": "sgd",
                "budget": 2,
                "changes": Changes().model_dump(),
                "values": None,
            }
        ],
        "seeds": 1,
        "device": "cpu",
        "first_seed": 0,
        "search": "grid",
    }
    assert result["summary"][0]["method"] == "sgd"
    assert result["files"]["report"] == str(folder / "report.html")
    assert "<html" in (folder / "report.html").read_text()
    assert len((folder / "results.csv").read_text().splitlines()) == 2


def test_report_says_the_same_from_what_is_stored(finished, capsys):
    folder, _, output, _ = finished
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(output)
    assert (folder / "report.html").exists()
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "SGD" in printed
    assert "report.html" in printed


def test_another_budget_in_the_same_folder_leaves_the_first_ones_runs(tmp_path, capsys):
    begun = [*SMALL[:-4], "--workers", "1", "--out", str(tmp_path)]
    for budget in ("2", "4"):
        assert cli.main(["compare", *begun, "--budget", budget]) == 0
    assert len(list(tmp_path.rglob("result.json"))) == 2
    kept = [path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")]
    assert cli.main(["compare", *begun, "--budget", "2", "--json"]) == 0
    assert kept == [path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")]
    capsys.readouterr()
    assert json.loads((tmp_path / "comparison.json").read_text())["results"][0]["gradient_evaluations"] == 2


def test_an_unfinished_comparison_cannot_be_reported(finished, capsys):
    folder = finished[0]
    (result,) = folder.rglob("result.json")
    kept = result.read_bytes()
    result.write_bytes(kept[:100])
    try:
        assert cli.main(["report", str(folder)]) == cli.BAD_INPUT
    finally:
        result.write_bytes(kept)
    errors = capsys.readouterr().err
    assert "made again" in errors
    assert "1 of 1 runs are missing" in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_in_the_midst_of_it(tmp_path, capsys):
    arguments = ["compare", *SMALL, "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    (place,) = (path.parent for path in tmp_path.rglob("result.json"))
    (place / "result.json").unlink()
    (place / ".result.json.partial").symlink_to("/dev/full")
    capsys.readouterr()
    assert cli.main(arguments) == cli.BAD_INPUT
    output, errors = capsys.readouterr()
    assert output == ""
    assert "No space left on device" in errors
    assert "Finished results are kept" in errors
    assert "Traceback" not in errors


def test_interrupted_it_says_how_to_continue(tmp_path):
    arguments = ("compare", "--methods", "sgd", "--seeds", "2", "--budget", "4000000", "--out", str(tmp_path / "a b"))
    process = start(*arguments, "--workers", "2", start_new_session=True)
    end = time.monotonic() + 60
    while not (tmp_path / "a b/compare.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
    status, output, errors = finish(process)
    assert status == cli.INTERRUPTED
    assert output == ""
    assert "Interrupted. Finished runs are kept" in errors
    assert f"flatmin compare --methods sgd --seeds 2 --budget 4000000 --out '{tmp_path}/a b' --workers 2" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("package", ["tyro", "pydantic", "rich", "sklearn", "pandas"])
def test_a_missing_extra_is_named_with_its_install_line(package, tmp_path):
    code = (
        f"import sys; sys.modules[{package!r}] = None; from flatmin_lab.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compare", *SMALL, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == cli.BAD_INPUT
    assert f"flatmin: {package} is not installed" in done.stderr
    assert "pip install 'flatmin[lab]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_without_greek_letters_gets_question_marks(tmp_path):
    command = [sys.executable, "-m", "flatmin_lab", "compare", "--methods", "sgd", "--tasks", "digits-clean"]
    command += ["--seeds", "1", "--budget", "4", "--workers", "1", "--out", str(tmp_path / "runs")]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"SGD" in done.stdout
