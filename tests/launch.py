"""Starts a script of the tests on two ranks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def launch(script, *arguments, timeout=300):
    """Run ``script RANK 2 *arguments`` for both ranks; return what each printed and its exit status."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    command = [sys.executable, "-W", "ignore", str(TESTS / script)]
    started = [
        subprocess.Popen(
            [*command, str(rank), "2", *map(str, arguments)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in started]
    finally:
        for rank in started:
            rank.kill()
    return [(rank.wait(), output[-8000:]) for rank, output in zip(started, outputs, strict=True)]


def require_success(script, folder):
    """Run ``script RANK 2 RENDEZVOUS`` for both ranks and fail with what they printed unless both succeed."""
    ended = launch(script, folder / "rendezvous")
    assert all(status == 0 for status, _ in ended), "\n".join(output for _, output in ended)
