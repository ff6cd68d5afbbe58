"""Two ranks under DDP and FSDP2 (what runs is in tests/attach_ranks.py)."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]


def test_two_ranks(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    command = [sys.executable, "-W", "ignore", str(TESTS / "attach_ranks.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "rendezvous")],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(output[-4000:] for output in outputs)
