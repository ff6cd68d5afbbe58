"""Questions to another process: what crashes there, hangs or tears down its interpreter does not end this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = Path(__file__).parents[2]

# The folder of this package comes last, so that it hides nothing and is found wherever it was started from.
_START = """import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__")"""


@dataclass(frozen=True)
class Answer:
    """What a probe said before it ended.

    Attributes:
        lines: The objects it wrote, one a line.
        fault: How it ended if not well, as the rest of a sentence; empty if it ended well.
    """

    lines: tuple[dict[str, Any], ...]
    fault: str = ""


def ask(probe: str, *arguments: str, seconds: float = 120.0) -> Answer:
    """Run a module of ``probes/`` in a process of its own, with this environment, and read what it says.

    Args:
        probe: Its name.
        arguments: Passed on.
        seconds: How long it may take.

    Returns:
        What it said, also where it did not end well.
    """
    command = [sys.executable, "-P", "-c", _START, str(_PACKAGES), f"{__package__}.probes.{probe}", *arguments]
    process = subprocess.Popen(  # noqa: S603 (this Python, a module of this package)
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        output, errors = process.communicate(timeout=seconds)
        fault = "" if process.returncode == 0 else _ended(process.returncode, errors)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        fault = f"did not end within {seconds:g} s"
    return Answer(tuple(_objects(output)), fault)


def said(*command: str, seconds: float = 10.0) -> tuple[str, str]:
    """Run a program of the machine and return its standard output, and how it failed, if it did."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return "", f"did not answer within {seconds:g} s"
    except OSError as error:
        return "", f"cannot be run ({error.strerror or error})"
    return done.stdout.strip(), "" if done.returncode == 0 else _ended(done.returncode, done.stderr)


def _objects(output: str) -> list[dict[str, Any]]:
    found = []
    for line in output.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off when the process was ended
            continue
    return found


def _ended(status: int, errors: str) -> str:
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"was ended by {name}"
    last = (errors.strip().splitlines() or [""])[-1].strip()
    return f"ended with status {status}" + (f": {last}" if last else "")
