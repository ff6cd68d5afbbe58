"""Why a property does not hold: reasons that were read in a peer's source (notes.toml)."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from peers.adapters import Peer


@functools.cache
def _stored() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("notes.toml").read_text())


def note(loop: str, peer: Peer, version: str) -> str:
    """Return the reason for a cell, or nothing where the source of this version was not read."""
    stored = _stored()
    if stored["read"].get(peer.distribution, version) != version:
        return ""
    for entry in stored["note"]:
        named = {name for group in entry["peers"] for name in stored["groups"].get(group, [group])}
        if loop in entry["loops"] and peer.name in named:
            return entry["text"]
    return ""
