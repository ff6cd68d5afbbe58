"""What a tracker is told of a run; the run's folder is the record, and has everything that is told."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from flatmin.errors import FlatminError
from flatmin.integrations import trackers
from flatmin.measures import Guarded
from flatmin_lab.errors import LabError

if TYPE_CHECKING:
    from flatmin.measures import Tracker
    from flatmin_lab.spec import Point
    from flatmin_lab.train.config import TrainConfig
    from flatmin_lab.train.folder import RunFolder

_FILE = "tracking.json"
_RECORD = "the folder of the run has everything"
_NAMES = {
    "evaluations": "gradient_evaluations",
    "live_trace": "hessian_trace",
    "live_trace_stderr": "hessian_trace_stderr",
}
"""Names of :class:`flatmin.Monitor` for what the history of a run has under others."""


class Untracked:
    """The tracker of a run that nobody else is told of."""

    def log(self, metrics: Any, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def tracker(config: TrainConfig, folder: RunFolder | None, evaluations: int) -> Tracker:
    """Open what is told of a run.

    A run that goes on from a checkpoint goes on in the tracker too, which has each point once. A tracker that fails
    along the way is noted, and the run goes on.

    Args:
        config: The run.
        folder: Its folder, which keeps the name it goes by; None on other ranks than the first, which tell nobody.
        evaluations: How many there were already.

    Raises:
        LabError: The tracker is not installed, or cannot begin.
    """
    if config.track is None or folder is None:
        return Untracked()
    try:
        opened = _opened(config, folder, evaluations)
    except ModuleNotFoundError as error:
        raise LabError(f"{error}. Or leave --track out: {_RECORD}.") from error
    except FlatminError:
        raise
    except Exception as error:
        why = str(error) or type(error).__name__
        raise LabError(
            f"{config.track} cannot begin: {why.rstrip('.')}. Mend that, or leave --track out: {_RECORD}."
        ) from error
    return Guarded(opened, folder.note)


def _opened(config: TrainConfig, folder: RunFolder, evaluations: int) -> Tracker:
    if config.track == "tensorboard":
        # What is told from here on comes after `evaluations`, and the point of a checkpoint before it was made.
        return trackers.TensorBoard(folder.folder / "tensorboard", purge_step=evaluations + 1)
    number = _number(folder, goes_on=evaluations > 0)
    name, everything = f"{config.spec.name}-{number}", config.model_dump(mode="json")
    if config.track == "wandb":
        return trackers.Wandb(name=name, id=number, resume="allow", dir=folder.folder, config=everything)
    return trackers.Trackio(name=name, resume="allow", config=everything)


def metrics(point: Point) -> dict[str, float]:
    """The numbers of a point by name, as a :class:`flatmin.Monitor` has them."""
    fields = {_NAMES.get(name, name): value for name, value in point if name != "live_shares"}
    shares = {f"hessian_trace_share/{name}": share for name, share in (point.live_shares or {}).items()}
    return {name: float(value) for name, value in {**fields, **shares}.items() if value is not None}


def _number(folder: RunFolder, *, goes_on: bool) -> str:
    """The name of this run among others in a tracker: that of before if it goes on and can be read."""
    if goes_on:
        try:
            return str(json.loads((folder.folder / _FILE).read_bytes())["id"])
        except (OSError, ValueError, LookupError, TypeError):
            pass  # it went on without this tracker, or the file is damaged
    number = secrets.token_hex(4)
    folder.write(_FILE, json.dumps({"id": number}))
    return number
