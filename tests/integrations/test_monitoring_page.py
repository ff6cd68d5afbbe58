"""The page docs/monitoring.md does what it says: the scripts of each framework run, and log what the page lists.

Its blocks for frameworks are marked ``py``, as those of docs/integrations.md are; the others run in test_pages.py.
"""

import json
import re
from pathlib import Path

import pytest
import torch

import flatmin as fm
from flatmin_lab.train.config import Track
from problems import closure_of, data, mlp

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")


def script(framework):
    parts = re.split(r"^### ", PAGE, flags=re.MULTILINE)
    (found,) = (part for part in parts if part.splitlines()[0].lower() == framework)
    (block,) = re.findall(r"```py\n(.*?)```", found, flags=re.DOTALL)
    return block


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # Lightning's own
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(
    ("framework", "file", "steps", "passes"),
    [
        ("transformers", "trainer.jsonl", [2, 4], [4, 8]),
        ("accelerate", "accelerate.jsonl", [2, 4], [4, 8]),
        ("lightning", "lightning.jsonl", [2, 4], [8, 16]),
    ],
)
def test_the_scripts_log_everything(framework, file, steps, passes, tmp_path, monkeypatch):
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
        batches = list(zip(x.chunk(4), y.chunk(4)))
        namespace = {"torch": torch, "fm": fm, "criterion": torch.nn.CrossEntropyLoss(), "batches": batches}
        exec(compile(script(framework), framework, "exec"), namespace)
    lines = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
    assert [line["step"] for line in lines] == steps
    assert [line["forward_passes"] for line in lines] == passes
    last = lines[-1]
    assert last["hessian_trace_stderr"] > 0
    assert last["noise_to_signal"] > 0
    assert sum(value for name, value in last.items() if "share/" in name) == pytest.approx(1.0)


def test_every_number_that_a_monitor_logs_is_explained():
    model = mlp()
    opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05)
    monitor = fm.Monitor(opt, model, every=2)
    for step in range(2):
        opt.step(closure_of(opt, model, data()))
        monitor.log(step)
    explained = "".join(re.findall(r"^- (`.*?):", PAGE, flags=re.MULTILINE))
    names = {re.sub("/.*", "/LAYER", name) for name in monitor.latest.metrics()}
    assert names == set(re.findall(r"`(.*?)`", explained))


def test_every_tracker_of_the_command_line_is_shown():
    assert set(re.findall(r"--track (\w+)", PAGE)) == set(Track.__args__)
