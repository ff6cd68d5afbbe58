"""What numbers belong to: hardware and versions."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch
from curvature.machine import cores

import flatmin

PACKAGES = ("transformers", "pytorch_optimizer", "ivon-opt")
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}
"""Has glibc keep what is freed. Otherwise a step gives memory back to the system, by chance, and pays for every page it
asks for again: on two cores this came to a tenth of a step, in the limit as in what stands beside it."""


def keep_memory(module: str) -> None:
    """Start this process anew with :data:`ALLOCATOR`, unless its environment has it."""
    if any(name not in os.environ for name in ALLOCATOR):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], ALLOCATOR | os.environ)  # noqa: S606


def about(device: torch.device) -> dict[str, Any]:
    """Return date, hardware and versions."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "hardware": hardware(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "flatmin": flatmin.__version__,
        **{name: version for name, version in versions.items() if version},
        **{name: os.environ[name] for name in ALLOCATOR if name in os.environ},
    }


def hardware(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cores()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
