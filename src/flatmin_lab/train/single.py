"""One run from its configuration to its result: trained, measured, kept, and never made twice."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch

from flatmin_lab.environment import environment
from flatmin_lab.errors import DivergedError
from flatmin_lab.job import Job, Outcome, execute
from flatmin_lab.run import train
from flatmin_lab.spec import Point, RunResult, RunSpec
from flatmin_lab.train.checkpoint import KeptCheckpoints, history_in
from flatmin_lab.train.folder import RunFolder

if TYPE_CHECKING:
    from flatmin_lab.train.config import TrainConfig
    from flatmin_lab.train.progress import RunBar


def run_single(config: TrainConfig, folder: Path, bar: RunBar) -> RunResult:
    """Train and measure what is not yet stored.

    Args:
        config: The run.
        folder: Where it is kept.
        bar: Told about everything that happens.

    Returns:
        The result, from the folder if the run is finished; a run that diverged has one too.

    Raises:
        FlatminError: The run cannot be made, or the folder is in use, holds another run, or cannot be written.
    """
    config.check()
    with RunFolder(folder, bar.note) as store:
        store.claim(config)
        checkpoints = KeptCheckpoints(folder, config.checkpoint_seconds, bar.note)
        result = store.result(config.spec)
        if result is None:
            result = _trained(config.spec, store, checkpoints, bar)
        checkpoints.clear()
        if config.measure and result.status == "finished" and result.trace is None:
            result = _measured(result, store, bar)
        return result


def _trained(spec: RunSpec, store: RunFolder, checkpoints: KeptCheckpoints, bar: RunBar) -> RunResult:
    here, state = environment(), checkpoints.load()
    store.start(() if state is None else history_in(state), here)
    bar.begin(spec, 0 if state is None else state["evaluations"])
    course = train(spec, state=state, checkpoints=checkpoints)
    try:
        while True:
            point = next(course)
            store.add(point)
            bar.point(point)
    except StopIteration as end:
        outcome = Outcome(end.value.result, safetensors.torch.save(end.value.weights), environment=here)
    except DivergedError as error:
        used, seconds = error.gradient_evaluations, error.seconds
        outcome = Outcome(RunResult.diverged(spec, str(error), gradient_evaluations=used, seconds=seconds))
    store.save(outcome)
    return outcome.result


def _measured(result: RunResult, store: RunFolder, bar: RunBar) -> RunResult:
    bar.measuring(result.spec)
    outcome = _end(execute(Job(result.spec, result, store.weights(result.spec), measure=True)))
    store.save(outcome)
    return outcome.result


def _end(course: Generator[Point, None, Outcome]) -> Outcome:
    try:
        while True:
            next(course)
    except StopIteration as end:
        return end.value
