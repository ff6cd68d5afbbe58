"""The registry of tasks: every small one trains and is measured, every large one says what it lacks."""

import dataclasses
import importlib

import pytest
import torch

from flatmin.errors import DataError
from flatmin_lab.tasks import TASKS, task
from small_runs import outcome, run_spec

NEEDS_TRANSFORMERS = {"digits-pairs", "sums-gpt", "turns-bert-along"}


@pytest.mark.parametrize("name", [name for name, t in TASKS.items() if t.files])
def test_a_task_of_files_says_what_it_lacks(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATMIN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"The task {name} needs .* is missing"):
        task(name).require()


@pytest.mark.parametrize("name", sorted(NEEDS_TRANSFORMERS))
@pytest.mark.parametrize("way", ["sgd", "nso", "sam"])
def test_networks_of_transformers_train_and_are_measured(name, way):
    pytest.importorskip("transformers")
    value = {"sgd": None, "nso": 0.01, "sam": 0.02}[way]
    result = outcome(run_spec(way, task=name, value=value, budget=4), measure=way == "nso").result
    assert result.gradient_evaluations == 4
    assert (result.trace_stderr is not None) == (way == "nso")
    assert 0 <= result.test_accuracy <= 1
    assert result.test_loss > 0
    assert (result.history[-1].gap is not None) == name.endswith("along")


def test_adamw_is_torchs_with_the_tasks_setting():
    setting = task("sums-gpt").setting
    base = setting.base([torch.nn.Parameter(torch.zeros(2))])
    assert type(base) is torch.optim.AdamW
    assert (base.defaults["lr"], base.defaults["weight_decay"]) == (setting.learning_rate, setting.weight_decay)
    assert type(dataclasses.replace(setting, optimizer="sgd").base([torch.zeros(2)])) is torch.optim.SGD


def test_the_registry_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, flatmin_lab.tasks; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_paper_tasks_have_the_paper_s_sources():
    sources = importlib.import_module("flatmin_lab.data.sources").SOURCES
    for name in ("cifar10", "cifar100", "aircraft", "caltech256", "indoor", "retina"):
        files = task(f"{name}-resnet34").files()
        assert any(key in files for s in sources.values() for key in s.files)
        assert "resnet-34/config.json" in files
