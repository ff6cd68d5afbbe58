"""Which runs a study consists of, which of them are still to be made, and how sigma, rho and alpha are chosen.

Two rounds of jobs. The first tunes: each value of each grid over the tuning seeds (arms with nothing to choose have
their final runs here already). The second runs every seed with the chosen value; a tuning run that coincides with a
final run is that run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from flatmin_lab.errors import LabError
from flatmin_lab.job import Job
from flatmin_lab.methods import method
from flatmin_lab.spec import Arm, RunSpec, Selection, Study
from flatmin_lab.store import Store
from flatmin_lab.tasks import task

TUNING_SEEDS = (0, 1)
"""Seeds over which sigma, rho and alpha are chosen, whatever number is reported; counted from the first seed."""

SURFACE_SEED = 0
"""Seed whose solutions are drawn."""

SURFACE_METHODS = ("sgd", "nso")
"""Methods whose solutions are drawn side by side."""


@dataclass(frozen=True)
class Planned:
    """How much there is to do, as far as is known when a round begins.

    Attributes:
        runs_done: Runs that are stored.
        runs_total: Runs that the whole comparison consists of.
        work_left: Weight of the jobs to come.
    """

    runs_done: int
    runs_total: int
    work_left: float


def rounds(study: Study, store: Store) -> Iterator[tuple[list[Job], Planned]]:
    """The jobs that are still to be done, round by round.

    Args:
        study: What to run.
        store: Holds the runs that are done; those of a round must be stored before the next one is asked for.

    Yields:
        The jobs of a round, and how much there is to do from there on.
    """
    first = first_round(study)
    tuned = [arm for arm in study.arms if is_tuned(arm)]
    again = len([seed for seed in TUNING_SEEDS if seed < study.seeds])
    fresh = study.seeds - again
    total = len(first) + len(tuned) * fresh

    jobs = _missing(store, first)
    later = len(tuned) * (fresh * _final_job_weight(trained=False) + again * _final_job_weight(trained=True))
    yield jobs, Planned(len(first) - _untrained(jobs), total, sum(job.weight for job in jobs) + later)

    second = dict.fromkeys(final_specs(study, select(study, store)), True)
    jobs = _missing(store, second)
    yield jobs, Planned(total - _untrained(jobs), total, sum(job.weight for job in jobs))


def values(arm: Arm) -> tuple[float, ...]:
    """The values of an arm's sigma, rho or alpha; none where it has nothing of the kind."""
    if method(arm.method).hyperparameter is None:
        return ()
    return task(arm.task).grid(method(arm.method)) if arm.values is None else arm.values


def is_tuned(arm: Arm) -> bool:
    """Whether there are several values to choose from."""
    return len(values(arm)) > 1


def first_round(study: Study) -> dict[RunSpec, bool]:
    """Every value of every grid over the tuning seeds, and the final runs of arms with nothing to choose.

    Args:
        study: What to run.

    Returns:
        Specifications, and whether they are final.
    """
    wanted: dict[RunSpec, bool] = {}
    for arm in study.arms:
        if is_tuned(arm):
            for value in values(arm):
                wanted = dict.fromkeys(_tuning_specs(study, arm, value), False) | wanted
        else:
            wanted |= dict.fromkeys(_untuned_specs(study, arm), True)
    return wanted


def final_specs(study: Study, selections: Iterable[Selection]) -> list[RunSpec]:
    """The runs that are reported: every arm and seed, with the chosen value.

    Args:
        study: What to run.
        selections: What was chosen.

    Returns:
        Their specifications.
    """
    chosen = {(s.task, s.method, s.budget, s.changes, s.grid): s.chosen for s in selections}
    wanted: list[RunSpec] = []
    for arm in study.arms:
        value = chosen.get((arm.task, arm.method, arm.budget, arm.changes, values(arm)))
        wanted += _untuned_specs(study, arm) if value is None else _specs(study, arm, value)
    return list(dict.fromkeys(wanted))


def select(study: Study, store: Store) -> tuple[Selection, ...]:
    """Choose sigma, rho or alpha of each arm, by mean validation accuracy and nothing else.

    A value with which a tuning run diverged is out; of equally good values the smaller one is taken.

    Args:
        study: What to run.
        store: Holds the tuning runs.

    Returns:
        One selection for each arm that has something to choose.

    Raises:
        LabError: Every value diverged.
    """
    return tuple(_selection(study, arm, store) for arm in study.arms if is_tuned(arm))


def tuning_specs(study: Study) -> list[RunSpec]:
    """The runs that values are chosen by."""
    tuned = [arm for arm in study.arms if is_tuned(arm)]
    return [spec for arm in tuned for value in values(arm) for spec in _tuning_specs(study, arm, value)]


def _selection(study: Study, arm: Arm, store: Store) -> Selection:
    way, grid = method(arm.method), values(arm)
    means = [fmean(r.validation_accuracy for r in store.results(_tuning_specs(study, arm, value))) for value in grid]
    best = max((mean for mean in means if not math.isnan(mean)), default=None)
    if best is None or way.hyperparameter is None:
        raise LabError(
            f"{arm.method} diverged on {arm.task} with every {way.hyperparameter} of its grid {grid}. Likely cause: "
            f"the learning rate {task(arm.task).setting.changed(arm.changes).learning_rate:g} is too large for it. "
            "Leave the method out with --methods."
        )
    return Selection(
        task=arm.task,
        method=arm.method,
        budget=arm.budget,
        changes=arm.changes,
        hyperparameter=way.hyperparameter,
        grid=grid,
        validation_accuracies=tuple(means),
        chosen=grid[means.index(best)],
    )


def is_drawn(spec: RunSpec) -> bool:
    """Whether the loss surface of a final run is drawn."""
    wanted = task(spec.task).measuring.surface and not spec.changes.name
    return wanted and spec.seed == SURFACE_SEED and spec.method in SURFACE_METHODS


def _missing(store: Store, wanted: Mapping[RunSpec, bool]) -> list[Job]:
    """Jobs for what is not stored yet; of a run that diverged there is nothing more to be had."""
    jobs = []
    for spec, final in wanted.items():
        found = store.result(spec)
        if found is not None and found.status == "diverged":
            continue
        job = Job(
            spec,
            stored=found,
            weights=store.weights(spec) if found else None,
            measure=final and (found is None or found.trace is None),
            surface=final and is_drawn(spec) and (found is None or store.surface(spec) is None),
        )
        if found is None or job.measure or job.surface:
            jobs.append(job)
    return jobs


def _untuned_specs(study: Study, arm: Arm) -> list[RunSpec]:
    return [spec for value in values(arm) or (None,) for spec in _specs(study, arm, value)]


def _specs(study: Study, arm: Arm, value: float | None) -> list[RunSpec]:
    return [_spec(study, arm, value, seed) for seed in study.run_seeds]


def _tuning_specs(study: Study, arm: Arm, value: float) -> list[RunSpec]:
    return [_spec(study, arm, value, study.first_seed + seed) for seed in TUNING_SEEDS]


def _spec(study: Study, arm: Arm, value: float | None, seed: int) -> RunSpec:
    return RunSpec(
        task=arm.task,
        method=arm.method,
        value=value,
        seed=seed,
        budget=arm.budget,
        device=study.device,
        changes=arm.changes,
    )


def _untrained(jobs: Iterable[Job]) -> int:
    return sum(job.stored is None for job in jobs)


def _final_job_weight(*, trained: bool) -> float:
    return (0.0 if trained else Job.TRAINING) + Job.MEASURING
