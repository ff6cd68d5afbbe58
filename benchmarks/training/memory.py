"""Peak memory of training steps, each case in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.cases import Case, named
from training.problems import PROBLEMS, Instance

_STEPS = 4
_LIMIT = "the limit"


def peaks(problem: str, cases: Sequence[Case], device: torch.device) -> dict[str, float]:
    """Return the peak of each case, and of the limit, in MiB above the network and its data."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, float] = {}
    for name in (_LIMIT, *(case.name for case in cases)):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(problem, name, str(device), sender))
        process.start()
        sender.close()
        try:
            found[name] = round(receiver.recv(), 1)
        except EOFError:
            raise RuntimeError(f"the process that measures the memory of {name!r} ended without a result") from None
        finally:
            process.join()
    return found


def _child(problem: str, name: str, device: str, sender: Any) -> None:
    torch.set_num_threads(1)
    instance = Instance(PROBLEMS[problem], torch.device(device))
    before = _now(instance, start=True)
    step = instance.ideal(2) if name == _LIMIT else next(c for c in named([name]) if c.name == name).make(instance)
    for _ in range(_STEPS):
        step()
    sender.send(_now(instance, start=False) - before)


def _now(instance: Instance, *, start: bool) -> float:
    """Return what is in use (at the start, where the peak starts anew) or the peak since then, in MiB."""
    if instance.device.type == "cuda":
        if start:
            torch.cuda.reset_peak_memory_stats(instance.device)
        return torch.cuda.max_memory_allocated(instance.device) / 2**20
    if start:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    field = "VmRSS" if start else "VmHWM"
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
