"""Which runs a study consists of, which of them are still to be made, and how sigma, rho and alpha are chosen.

Two rounds of jobs. The first tunes: each value of each grid over the tuning seeds (arms with nothing to choose have
their final runs here already). The second runs every seed with the chosen value; a tuning run that coincides with a
final run is that run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from flatmin_lab.errors import LabError
from flatmin_lab.job import Job
from flatmin_lab.methods import method
from flatmin_lab.search import Searched, searcher
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
    tuned = [arm for arm in study.arms if is_tuned(arm)]
    again = len([seed for seed in TUNING_SEEDS if seed < study.seeds])
    fresh = study.seeds - again
    last = len(tuned) * (fresh * _final_job_weight(trained=False) + again * _final_job_weight(trained=True))
    begun = False
    while not begun or any(_searched(study, arm, store).pending for arm in tuned):
        begun = True  # a grid takes one round; a search whose suggestions depend on results takes more
        wanted, to_come = first_round(study, store), _trials_to_come(study, store)
        jobs, total = _missing(store, wanted), len(wanted) + to_come + len(tuned) * fresh
        later = to_come * Job.TRAINING + last
        yield jobs, Planned(len(wanted) - _untrained(jobs), total, sum(job.weight for job in jobs) + later)

    total = len(first_round(study, store)) + len(tuned) * fresh
    jobs = _missing(store, dict.fromkeys(final_specs(study, select(study, store)), True))
    yield jobs, Planned(total - _untrained(jobs), total, sum(job.weight for job in jobs))


def values(arm: Arm) -> tuple[float, ...]:
    """The values of an arm's sigma, rho or alpha; none where it has nothing of the kind."""
    if method(arm.method).hyperparameter is None:
        return ()
    return task(arm.task).grid(method(arm.method)) if arm.values is None else arm.values


def is_tuned(arm: Arm) -> bool:
    """Whether there are several values to choose from."""
    return len(values(arm)) > 1


def first_round(study: Study, store: Store) -> dict[RunSpec, bool]:
    """Every value that was tried or is to be tried next, and the final runs of arms with nothing to choose.

    Args:
        study: What to run.
        store: Holds the tuning runs, by which values are suggested.

    Returns:
        Specifications, and whether they are final.
    """
    wanted: dict[RunSpec, bool] = {}
    for arm in study.arms:
        if is_tuned(arm):
            found = _searched(study, arm, store)
            for value in (*found.tried, *found.pending):
                wanted = dict.fromkeys(_tuning_specs(study, arm, value), False) | wanted
        else:
            wanted |= dict.fromkeys(_untuned_specs(study, arm), True)
    return wanted


def final_specs(study: Study, selections: Iterable[Selection]) -> list[RunSpec]:
    """The runs that are reported: every arm and seed, with the chosen value.

    Args:
        study: What to run.
        selections: What was chosen, as `select` returned it.

    Returns:
        Their specifications.
    """
    wanted: list[RunSpec] = []
    chosen = iter(selections)
    for arm in study.arms:
        wanted += _specs(study, arm, next(chosen).chosen) if is_tuned(arm) else _untuned_specs(study, arm)
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


def tuning_specs(study: Study, store: Store) -> list[RunSpec]:
    """The runs that values are chosen by."""
    tuned = [arm for arm in study.arms if is_tuned(arm)]
    found = [(arm, value) for arm in tuned for value in _searched(study, arm, store).tried]
    return [spec for arm, value in found for spec in _tuning_specs(study, arm, value)]


def _searched(study: Study, arm: Arm, store: Store) -> Searched:
    """Which values of a tuned arm were tried, and which come next."""

    def score(value: float) -> float | None:
        found = [store.result(spec) for spec in _tuning_specs(study, arm, value)]
        accuracies = [result.validation_accuracy for result in found if result is not None]
        return fmean(accuracies) if len(accuracies) == len(found) else None

    # Arms of one study are searched with different seeds, each with the same one whatever other arms there are.
    seed = int(hashlib.sha256(arm.model_dump_json().encode()).hexdigest()[:8], 16) ^ study.first_seed
    return searcher(study.search).search(values(arm), score, seed)


def _trials_to_come(study: Study, store: Store) -> int:
    """Tuning runs whose values are not suggested yet."""
    to_come = 0
    for arm in study.arms:
        if is_tuned(arm):
            found = _searched(study, arm, store)
            to_come += max(0, len(values(arm)) - len(found.tried) - len(found.pending))
    return len(TUNING_SEEDS) * to_come


def _selection(study: Study, arm: Arm, store: Store) -> Selection:
    way, found = method(arm.method), _searched(study, arm, store)
    if found.best is None or way.hyperparameter is None:
        raise LabError(
            f"{arm.method} diverged on {arm.task} with every {way.hyperparameter} of {tuple(found.tried)}. Likely "
            f"cause: the learning rate {task(arm.task).setting.changed(arm.changes).learning_rate:g} is too large for "
            "it. Leave the method out with --methods."
        )
    return Selection(
        task=arm.task,
        method=arm.method,
        budget=arm.budget,
        changes=arm.changes,
        hyperparameter=way.hyperparameter,
        grid=tuple(found.tried),
        validation_accuracies=tuple(found.tried.values()),
        chosen=found.best,
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
