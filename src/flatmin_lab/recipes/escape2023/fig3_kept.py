"""What Figure 3 keeps in its folder: the start and every finished walk, whole or not at all.

::

    start.safetensors                     weights, and in its header how they were made and what they are like
    walks/SA-batch128-rho0.1-seed0-5c1d72f0.json        one a walk: its name and the hash of all that decides it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from flatmin_lab.files import explained, write_whole
from flatmin_lab.recipes.escape2023.fig3_walks import Asked, Look, Walk
from flatmin_lab.spec import Value

if TYPE_CHECKING:
    from torch import Tensor

_START, _HEADER = "start.safetensors", "start"


class Start(Value):
    """How the start was made, and what it is like beside a network that never saw random labels.

    Attributes:
        made_of: A hash of data, network, recipe, seed and code.
        random_share: Share of the random labels that were fitted.
        random_epochs: Passes over them.
        true_epochs: Passes over the training data with their own labels that followed.
        gradients: Gradients of mini-batches, of both.
        look: What the start is like.
        fresh: What a network from fresh weights is like once it fits the training data.
    """

    made_of: str
    random_share: float
    random_epochs: int
    true_epochs: int
    gradients: int
    look: Look
    fresh: Look


@dataclass(frozen=True)
class Kept:
    """A folder with a start and walks.

    Args:
        folder: Where.
        note: Told in one line about a file that cannot be read, or is of something else; it is made again.
    """

    folder: Path
    note: Callable[[str], object]

    def start(self, made_of: str) -> tuple[Start, dict[str, Tensor]] | None:
        """The stored start, if it was made of this."""
        path = self.folder / _START
        if not path.is_file():
            return None
        with explained(path, "read"):
            try:
                with safe_open(path, framework="pt") as stored:
                    about = Start.model_validate_json((stored.metadata() or {}).get(_HEADER, ""))
                    weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)
            except (SafetensorError, ValidationError):
                self.note(f"{path.name} is made again: it cannot be read.")
                return None
        if about.made_of != made_of:
            self.note(f"{path.name} is made again: it is of other data, another recipe or another version.")
            return None
        return about, weights

    def keep_start(self, about: Start, weights: dict[str, Tensor]) -> None:
        """Write the start."""
        content = safetensors.torch.save(weights, metadata={_HEADER: about.model_dump_json()})
        write_whole(self.folder / _START, content)

    def walk(self, asked: Asked) -> Walk | None:
        """The stored walk that was asked for."""
        path = self._path(asked)
        if not path.is_file():
            return None
        with explained(path, "read"):
            try:
                found = Walk.model_validate_json(path.read_bytes())
            except ValueError:  # pydantic's own is one
                self.note(f"{path.name} is made again: it cannot be read.")
                return None
        if found.asked != asked:
            self.note(f"{path.name} is made again: it holds another walk.")
            return None
        return found

    def keep_walk(self, found: Walk) -> None:
        """Write a finished walk."""
        write_whole(self._path(found.asked), found.model_dump_json(indent=1).encode())

    def _path(self, asked: Asked) -> Path:
        return self.folder / "walks" / f"{asked.name}-{digest(asked.model_dump(mode='json'))[:8]}.json"


def digest(*what: object) -> str:
    """A hash of what JSON can write."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
