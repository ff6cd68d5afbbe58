"""One run from its configuration to its result: trained, measured, kept, and never made twice."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch

from flatmin_lab.environment import environment
from flatmin_lab.errors import DivergedError
from flatmin_lab.job import Job, Outcome, execute
from flatmin_lab.run import train
from flatmin_lab.spec import Point, RunResult
from flatmin_lab.train.checkpoint import KeptCheckpoints, history_in
from flatmin_lab.train.folder import RunFolder
from flatmin_lab.train.ranks import Alone, joined
from flatmin_lab.train.tracking import metrics, tracker

if TYPE_CHECKING:
    from flatmin_lab.train.config import TrainConfig
    from flatmin_lab.train.progress import RunBar


def run_single(config: TrainConfig, folder: Path, bar: RunBar) -> RunResult | None:
    """Train and measure what is not yet stored. All processes of a run call this; the first one writes and measures.

    Args:
        config: The run.
        folder: Where it is kept.
        bar: Told about everything that happens.

    Returns:
        The result, from the folder if the run is finished; a run that diverged has one too. None on other ranks than
        the first.

    Raises:
        FlatminError: The run cannot be made, or the folder is in use, holds another run, or cannot be written.
    """
    with ExitStack() as held:
        with joined(config.parallel, config.device) as ranks:
            store = ranks.agreed(lambda: _taken(config, folder, bar, held, ranks))
            result = ranks.of_first(store and store.result(config.spec))
            if result is None:
                result = _trained(config, store, ranks, bar)
        if store is None:
            return None
        KeptCheckpoints(folder).clear()
        if config.measure and result.status == "finished" and result.trace is None:
            result = _measured(result, store, bar)  # the other ranks need not wait
        return result


def _taken(config: TrainConfig, folder: Path, bar: RunBar, held: ExitStack, ranks: Alone) -> RunFolder | None:
    """The folder, on the first rank, once it is sure that the run can be made."""
    config.check()
    if ranks.rank:
        return None
    store = held.enter_context(RunFolder(folder, bar.note))
    store.claim(config)
    return store


def _trained(config: TrainConfig, store: RunFolder | None, ranks: Alone, bar: RunBar) -> RunResult:
    spec, here = config.spec, environment()
    if ranks.world > 1:
        here["ranks"] = f"{ranks.world} ({config.parallel})"
    kept = None if store is None else KeptCheckpoints(store.folder, config.checkpoint_seconds, bar.note)
    state = ranks.of_first(ranks.agreed(lambda: kept and kept.load()))
    evaluations = 0 if state is None else state["evaluations"]
    history = [] if state is None else history_in(state)
    if store is not None:
        store.start(history, here)
        bar.begin(spec, evaluations, history)
    course = train(spec, state=state, checkpoints=kept, ranks=ranks)
    with closing(ranks.agreed(lambda: tracker(config, store, evaluations))) as told:
        try:
            while True:
                point = next(course)
                if store is not None:
                    store.add(point)
                    bar.point(point)
                told.log(metrics(point), point.evaluations)
        except StopIteration as end:
            outcome = Outcome(end.value.result, safetensors.torch.save(end.value.weights), environment=here)
        except DivergedError as error:
            used, seconds = error.gradient_evaluations, error.seconds
            diverged = RunResult.diverged(spec, str(error), gradient_evaluations=used, seconds=seconds)
            outcome = Outcome(diverged, environment=here)
    if store is not None:
        store.save(outcome)
    return outcome.result


def _measured(result: RunResult, store: RunFolder, bar: RunBar) -> RunResult:
    bar.measuring(result.spec)
    outcome = _end(execute(Job(result.spec, result, store.weights(result.spec), measure=True)))
    store.save(replace(outcome, environment=store.environment()))
    return outcome.result


def _end(course: Generator[Point, None, Outcome]) -> Outcome:
    try:
        while True:
            next(course)
    except StopIteration as end:
        return end.value
