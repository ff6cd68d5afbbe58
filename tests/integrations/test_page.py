"""The page docs/integrations.md does what it says: the scripts of each framework run, from top to bottom.

Its blocks are marked ``py``, not ``python``: so they run here alone, where a missing framework is a reason to skip.
"""

import re
from pathlib import Path

import pytest
import torch

import flatmin as fm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"


def scripts(framework):
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = (part for part in section if part.splitlines()[0].lower() == framework)
    return re.findall(r"```py\n(.*?)```", found, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # Lightning's own
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize(("framework", "blocks"), [("transformers", 2), ("accelerate", 2), ("lightning", 3)])
def test_the_scripts_run(framework, blocks, tmp_path, monkeypatch):
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    monkeypatch.chdir(tmp_path)
    found = scripts(framework)
    assert len(found) == blocks
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
        batches = list(zip(x.chunk(4), y.chunk(4)))
        namespace = {"torch": torch, "fm": fm, "criterion": torch.nn.CrossEntropyLoss(), "batches": batches}
        for number, script in enumerate(found):
            exec(compile(script, f"{framework}, block {number + 1}", "exec"), namespace)
