"""What numbers belong to: hardware and versions."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import platform
from typing import Any

import torch
from curvature.machine import cores

import flatmin

PACKAGES = ("transformers", "pytorch_optimizer", "ivon-opt")


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
