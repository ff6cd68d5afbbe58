"""Where a run goes on: everything that its next step depends on, as tensors and plain values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flatmin_lab.environment import code_digest
from flatmin_lab.errors import StoreError
from flatmin_lab.shelf import Shelf
from flatmin_lab.spec import Point
from flatmin_lab.train.shards import part, parted

if TYPE_CHECKING:
    from flatmin_lab.training import Training

CHECKPOINT = "checkpoint.pt"
_NAME = CHECKPOINT.removesuffix(".pt")


class Checkpoints:
    """Checkpoints that are kept nowhere: those of runs that begin again if they are interrupted."""

    def is_due(self) -> bool:
        """Whether it is time for one."""
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep the state in place of the former."""
        del state


class KeptCheckpoints(Checkpoints):
    """The checkpoint of a folder: whole or not there, one at a time.

    Args:
        folder: Where.
        seconds: Time between two.
        note: Told in one line about a checkpoint that cannot be read; training then begins again.
    """

    def __init__(self, folder: Path, seconds: float = 0.0, note: Callable[[str], object] = lambda _: None) -> None:
        self._shelf = Shelf(folder, note)
        self._seconds = seconds
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for one."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep the state in place of the former."""
        self._shelf[_NAME] = {"code": code_digest(), **state}
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that was kept last, or None.

        Raises:
            StoreError: It was made by other code, with which a run of one piece cannot be had.
        """
        state = self._shelf.get(_NAME)
        if state is not None and state.pop("code") != code_digest():
            path = self._shelf.folder / CHECKPOINT
            raise StoreError(
                f"{path} was made by other code than this, and numbers of two kinds of code are not mixed in one run. "
                "Go on with the code that began it, or delete the file to begin again."
            )
        return state

    def clear(self) -> None:
        """Forget it: the run is finished."""
        if _NAME in self._shelf:
            del self._shelf[_NAME]


def state_of(training: Training) -> dict[str, Any]:
    """What a run is between two steps.

    The order of the batches follows from the seed and the number of steps, as the weights that a distance penalty
    pulls to follow from the seed.

    Args:
        training: The run. All its ranks call this: what is sharded is gathered.

    Returns:
        Tensors, numbers, texts, and lists and dicts of them.
    """
    attachment, ranks = training.attachment, training.ranks
    return {
        "model": ranks.whole(training.network.state_dict()),
        "optimizer": ranks.whole(training.optimizer.state_dict()),
        "attachment": None if attachment is None else attachment.state_dict(),
        "monitor": training.monitor.state_dict(),
        "schedule": training.schedule.state_dict(),
        "augmentation": training.augmenting.get_state(),
        "random": ranks.each(_random_states(training.device)),
        "steps": training.steps_made,
        "evaluations": training.evaluations,
        "seconds": training.seconds,
        "history": [point.model_dump() for point in training.history],
    }


def restore(training: Training, state: Mapping[str, Any]) -> None:
    """Bring a run that has just been made to where another one was.

    Args:
        training: The run.
        state: What `state_of` returned for the other.
    """
    training.network.load_state_dict(parted(state["model"], training.network.state_dict()))
    training.optimizer.load_state_dict(_of_this_rank(training, state["optimizer"]))
    if training.attachment is not None:
        training.attachment.load_state_dict(state["attachment"])
    training.monitor.load_state_dict(state["monitor"])
    training.schedule.load_state_dict(state["schedule"])
    training.augmenting.set_state(state["augmentation"])
    if training.ranks.rank < len(state["random"]):  # a rank that is new begins a stream of its own
        _set_random_states(state["random"][training.ranks.rank])
    for _ in range(state["steps"]):
        next(training.order)
    training.steps_made, training.evaluations = state["steps"], state["evaluations"]
    training.seconds, training.history = state["seconds"], history_in(state)


def _of_this_rank(training: Training, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer, what belongs to sharded parameters being sharded as they are."""
    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    own = dict(zip(numbers, parameters, strict=True))
    parts = {n: {name: part(value, own[n]) for name, value in values.items()} for n, values in state["state"].items()}
    return {**state, "state": parts}


def history_in(state: Mapping[str, Any]) -> list[Point]:
    """The points of the history up to a checkpoint."""
    return [Point.model_validate(point) for point in state["history"]]


def _random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Of torch's global generators, which forward passes draw from."""
    states = {"cpu": torch.get_rng_state()}
    return {**states, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _set_random_states(states: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
