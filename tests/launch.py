"""Starts a script of the tests on two ranks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def launch(script, *arguments, timeout=300):
    """Run ``script RANK 2 *arguments`` for both ranks; return what each printed, followed by its exit status."""
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
    return [f"{text[-4000:]}\nexit status {rank.wait()}" for rank, text in zip(started, outputs, strict=True)]
