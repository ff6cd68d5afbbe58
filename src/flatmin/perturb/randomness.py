"""The global random states: read and put back, never advanced by flatmin itself."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch


class RandomState(NamedTuple):
    """The state of every global generator that a forward pass may draw from: torch's, numpy's and Python's."""

    cpu: torch.Tensor
    accelerators: tuple[tuple[torch.device, torch.Tensor], ...]
    numpy: Any
    python: Any

    @classmethod
    def capture(cls, devices: Iterable[torch.device] = ()) -> RandomState:
        """Read the states; ``devices`` are those beside the CPU that the model uses."""
        accelerators = sorted({d for d in devices if d.type not in ("cpu", "meta")}, key=str)
        return cls(
            torch.get_rng_state(),
            tuple((device, _module(device).get_rng_state(*_where(device))) for device in accelerators),
            np.random.get_state(),  # noqa: NPY002 (the legacy generator is what users' augmentations draw from)
            random.getstate(),
        )

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators:
            _module(device).set_rng_state(state, *_where(device))
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _where(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # torch.mps has one generator and takes no device
