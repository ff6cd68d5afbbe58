"""One training run: the same budget of gradient evaluations for every method, counted where they happen.

Training is written as a generator: it yields a `Point` of its history whenever it has one and returns the trained
weights with their numbers. Whoever drives it, in this process or in a worker, decides what to do with the points.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from flatmin.errors import ArgumentError
from flatmin_lab.seeds import derive
from flatmin_lab.tasks import task
from flatmin_lab.train.checkpoint import Checkpoints, restore
from flatmin_lab.train.ranks import Alone
from flatmin_lab.training import Trained, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatmin_lab.spec import Point, RunSpec


def train(
    spec: RunSpec,
    *,
    state: Mapping[str, Any] | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Alone | None = None,
) -> Generator[Point, None, Trained]:
    """Train as ``spec`` says. One specification gives the same numbers bit for bit on one thread of one machine.

    Initial weights, splits and the order of batches depend on the seed alone, so that runs of different methods
    with one seed are a pair. torch's global generators are left as found.

    Args:
        spec: What to train.
        state: A checkpoint of this run to go on from.
        checkpoints: Where checkpoints are kept; nowhere if not given.
        ranks: The processes that share the run and each call this; this one alone if not given.

    Yields:
        About as many points of the history as the task wants; those up to ``state`` are not told again.

    Returns:
        The numbers and the weights.

    Raises:
        DivergedError: The loss became NaN or infinite.
        LabError: The method used another number of gradient evaluations than it declares.
    """
    device = usable_device(spec.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        training = Training(spec, device, network(spec), ranks)
        if state is not None:
            restore(training, state)
        yield from training.steps(checkpoints or Checkpoints())
        return training.finish()


def network(spec: RunSpec, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The network of a run, with ``weights`` or as it starts.

    Args:
        spec: Names the task, the seed and the device.
        weights: What `train` returned; None for the initial weights.

    Returns:
        The network on the run's device.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(spec.seed, "initial weights"))
        model = task(spec.task).network()
    if weights is not None:
        model.load_state_dict(weights)
    return model.to(usable_device(spec.device))


def usable_device(name: str) -> torch.device:
    """Return the device called ``name``, or say why it cannot be used.

    Args:
        name: As torch names devices: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Returns:
        The device.

    Raises:
        ArgumentError: torch does not know the name, or the machine lacks the device.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0].rstrip(".")
        raise ArgumentError(
            f"device is {name!r}, but torch cannot use it here: {first_line}. "
            f"Either this machine lacks it or this torch ({torch.__version__}) was built without it. "
            "Take --device cpu, or install a build of torch for it."
        ) from error
    return device
