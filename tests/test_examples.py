"""The scripts in examples/ run as a newcomer would run them, only shorter, and print what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PERCENT = r"(\d+\.\d) %"


@pytest.fixture
def script(tmp_path, monkeypatch, capsys):
    """Runs a script in an empty folder and returns the lines it prints."""
    pytest.importorskip("transformers", reason="transformers is not installed (the extra trainer)")
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def gains(lines):
    """Mean of the differences of the lines by seed, and the mean that the last line prints."""
    pairs = [tuple(map(float, re.findall(PERCENT, line))) for line in lines if line.startswith("seed")]
    mean = re.search(r"([+-]\d+\.\d) points, 95 % interval \[", lines[-1])
    return sum(b - a for a, b in pairs) / len(pairs), float(mean[1])


def test_a_resnet_is_fine_tuned_and_goes_on_where_it_was(script):
    once = script("finetune_resnet.py", "--gradients", "12", "--seeds", "2")
    assert gains(once)[0] == pytest.approx(gains(once)[1], abs=0.15)
    assert {file.stem for file in Path("runs/resnet").iterdir()} >= {"start", "SGD-0", "SGD-1"}
    assert torch.load("runs/resnet/SGD-1.pt", weights_only=True)["step"] == 12
    assert script("finetune_resnet.py", "--gradients", "12", "--seeds", "2") == once


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_a_transformer_is_fine_tuned_by_the_trainer(script):
    pytest.importorskip("accelerate", reason="accelerate is not installed, which the Trainer needs")
    Path("table.csv").write_text("text,label\n" + "good day,yes\nbad night,no\n" * 32, encoding="utf-8")
    lines = script("finetune_trainer.py", "--table", "table.csv", "--steps", "20", "--seeds", "2")
    assert gains(lines)[0] == pytest.approx(gains(lines)[1], abs=0.15)
    assert lines[0].startswith("seed 0: test accuracy 100.0 % plain, 100.0 % with noise")


def test_a_checkpoint_is_measured_and_certified(script):
    lines = script("measure_and_certify.py")
    assert lines[0].startswith("TraceEstimate(")
    assert "± 0," in lines[0]  # exact
    assert lines[1].startswith("EigenPairs(")
    assert lines[2].startswith("GapEstimate(")
    certified, test = map(float, re.findall(r"(\d+\.\d)%", lines[-1]))
    assert test < certified < 50
    assert "vacuous: False" in lines[-1]


def test_each_says_what_it_needs_and_is_short():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 3
    for file in scripts:
        lines = file.read_text(encoding="utf-8").splitlines()
        assert re.search(r"^Needs `pip install 'flatmin\[[\w,]+\]'`", "\n".join(lines[:4]), flags=re.MULTILINE)
        assert len(lines) <= 90
