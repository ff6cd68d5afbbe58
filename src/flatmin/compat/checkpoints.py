"""Checkpoints of the two-call SAM class."""

from __future__ import annotations

import warnings
from typing import Any

_SCRATCH = ("old_p", "e_w")
"""What the class kept of each parameter (older versions the second): no state, but the memory of one step."""


def without_scratch(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint without what the old class kept in it, and warn if that was all of its state."""
    entries: dict[Any, Any] = state_dict["state"]
    if not any(isinstance(entry, dict) and name in entry for entry in entries.values() for name in _SCRATCH):
        return state_dict
    kept = {i: {name: v for name, v in entry.items() if name not in _SCRATCH} for i, entry in entries.items()}
    kept = {i: entry for i, entry in kept.items() if entry}
    if not kept:
        warnings.warn(
            "This checkpoint was written by the two-call SAM class, which does not save the state of its base "
            "optimizer: momentum, or the moments of Adam, start from zero here, and the loss may rise for some steps. "
            "Learning rates, rho and the other hyperparameters are loaded. Checkpoints from now on hold everything.",
            stacklevel=3,
        )
    return {**state_dict, "state": kept}
