"""What is published: wheel and sdist hold what they should and nothing else, need torch and numpy alone, and are built
by workflows that nobody else can change."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import flatmin

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist of this working tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def sources():
    return {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not any(".egg-info" in part for part in path.parts)
    }


def test_the_wheel_holds_both_packages_whole_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    about = f"flatmin-{flatmin.__version__}.dist-info"
    assert {name for name in names if not name.startswith(about)} == sources()
    assert {"flatmin/py.typed", "flatmin_lab/py.typed", f"{about}/licenses/LICENSE"} <= names


def test_without_extras_it_needs_torch_and_numpy_and_no_more(built):
    with zipfile.ZipFile(built[0]) as wheel:
        about = message_from_bytes(wheel.read(f"flatmin-{flatmin.__version__}.dist-info/METADATA"))
        points = wheel.read(f"flatmin-{flatmin.__version__}.dist-info/entry_points.txt").decode()
    needed = about.get_all("Requires-Dist")
    assert sorted(re.split(r"[<>=~ ]", line)[0] for line in needed if "extra ==" not in line) == ["numpy", "torch"]
    assert about["Version"] == flatmin.__version__
    assert (about["License-Expression"], about["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert about["Description-Content-Type"] == "text/markdown"
    assert "flatmin = flatmin_lab.cli:main" in points
    assert not any(re.match(r"(torchvision|timm|open_clip)", line) for line in needed)
    lightning = [line for line in needed if line.startswith("lightning")]
    assert lightning
    assert all(">=2.6.6" in line for line in lightning), "2.6.2 and 2.6.3 were malicious"


FROM_THE_WHEEL = """
import json, sys
sys.path.insert(0, {folder!r})
import torch, numpy
before = set(sys.modules)
import flatmin
new = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
print(json.dumps([flatmin.__file__, sorted(new), len(set(sys.modules) - before)]))
"""


def test_what_is_installed_imports_nothing_but_torch_and_numpy(built, tmp_path):
    """In an isolated interpreter, from the unpacked wheel: neither this folder nor PYTHONPATH help."""
    zipfile.ZipFile(built[0]).extractall(tmp_path)
    command = [sys.executable, "-I", "-c", FROM_THE_WHEEL.format(folder=str(tmp_path))]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    file, new, count = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert set(new) <= {"flatmin", "torch", "numpy"}
    assert count < 20, "modules that importing flatmin loads after torch; rooms are opened when they are asked for"


def test_the_sdist_holds_what_its_own_tests_need_and_builds_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    for name in ("tests/test_release.py", "Makefile", "constraints.txt", "SECURITY.md", "docs/design.md"):
        assert (root / name).is_file(), name
    left_out = {"runs", "dist", ".venv", ".git", "__pycache__"}
    assert not [path for path in root.rglob("*") if left_out & set(path.relative_to(root).parts)]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (again,) = (tmp_path / "again").iterdir()
    contents = [{i.filename: i.CRC for i in zipfile.ZipFile(path).infolist()} for path in (wheel, again)]
    assert contents[0] == contents[1]


def test_versions_are_semantic_and_the_changelog_goes_on():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", flatmin.__version__)
    sections = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased" or sections[0] == flatmin.__version__
    assert len(set(sections)) == len(sections)


@pytest.mark.parametrize(
    ("release", "changelog", "message"),
    [
        ("9.9.9", "## [9.9.9]", f"flatmin.__version__ is {flatmin.__version__}, and the release is 9.9.9"),
        (flatmin.__version__, "## [Unreleased]", rf"has no section \[{flatmin.__version__}\]"),
    ],
)
def test_a_release_of_another_version_or_without_its_changes_is_not_built(tmp_path, release, changelog, message):
    for name in ("Makefile", "pyproject.toml", "src/flatmin/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    command = ["make", "dist", f"RELEASE={release}", f"BIN={Path(sys.executable).parent}", "--old-file=.venv/.build"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert re.search(message, done.stdout)
    assert not (tmp_path / "dist").exists()


# --- workflows


def steps(workflow):
    for job in workflow["jobs"].values():
        yield from ([job] if "uses" in job else job["steps"])


def test_there_are_workflows_for_changes_and_for_releases():
    assert [path.name for path in WORKFLOWS] == ["checks.yml", "release.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_every_action_is_named_by_its_commit_with_its_version_beside_it(path):
    text = path.read_text()
    used = [step["uses"] for step in steps(yaml.safe_load(text)) if "uses" in step]
    assert used
    for action in used:
        assert action.startswith("./") or re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40}", action), action
        assert action.startswith("./") or re.search(rf"{re.escape(action)} # v\d+\.\d+\.\d+$", text, re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_may_do_as_little_as_they_can_and_run_no_text_of_strangers(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "pull_request_target" not in workflow[True], "YAML reads `on` as true"
    assert "secrets." not in path.read_text()
    for job in workflow["jobs"].values():
        assert set(job.get("permissions", {}).items()) <= {("contents", "read"), ("id-token", "write")}
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), "what an expression gives would be run as code: pass it by env"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_the_job_that_publishes_can_prove_who_it_is_and_it_runs_no_code_of_ours():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job["permissions"]] == ["publish"]
    publish = jobs["publish"]
    assert publish["environment"]["name"] == "pypi"
    assert publish["needs"] == "build"
    assert jobs["build"]["needs"] == "checks"
    assert not any("run" in step or "checkout" in step["uses"] for step in publish["steps"])
    assert publish["steps"][-1]["with"] == {"attestations": True}


def test_every_supported_python_is_tested():
    matrix = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]["tests"]["strategy"]["matrix"]
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert matrix["python"] == named
