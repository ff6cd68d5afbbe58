"""Which runs a comparison consists of, which of them are still to be made, and how sigma, rho and alpha are chosen.

Two rounds of jobs. The first tunes: each value of each grid over the tuning seeds (methods with nothing to tune have
their final runs here already). The second runs every seed with the chosen value; a tuning run that coincides with a
final run is that run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean

from flatmin_lab.errors import LabError
from flatmin_lab.job import Job
from flatmin_lab.methods import method
from flatmin_lab.spec import CompareSpec, RunSpec, Selection
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


def rounds(asked: CompareSpec, store: Store) -> Iterator[tuple[list[Job], Planned]]:
    """The jobs that are still to be done, round by round.

    Args:
        asked: What to compare.
        store: Holds the runs that are done; those of a round must be stored before the next one is asked for.

    Yields:
        The jobs of a round, and how much there is to do from there on.
    """
    first = first_round(asked)
    tuned = [(on, way) for on, way in _pairs(asked) if method(way).hyperparameter]
    again = len([seed for seed in TUNING_SEEDS if seed < asked.seeds])
    fresh = asked.seeds - again
    total = len(first) + len(tuned) * fresh

    jobs = _missing(store, first)
    later = len(tuned) * (fresh * _final_job_weight(trained=False) + again * _final_job_weight(trained=True))
    yield jobs, Planned(len(first) - _untrained(jobs), total, sum(job.weight for job in jobs) + later)

    second = [(spec, True) for spec in final_specs(asked, select(asked, store))]
    jobs = _missing(store, second)
    yield jobs, Planned(total - _untrained(jobs), total, sum(job.weight for job in jobs))


def first_round(asked: CompareSpec) -> list[tuple[RunSpec, bool]]:
    """Every value of every grid over the tuning seeds, and the final runs of methods that have no grid.

    Args:
        asked: What to compare.

    Returns:
        Specifications, and whether they are final.
    """
    wanted = []
    for on, way in _pairs(asked):
        if method(way).hyperparameter is None:
            wanted += [(_spec(asked, on, way, None, seed), True) for seed in asked.run_seeds]
        for value in task(on).grid(method(way)):
            wanted += [(spec, False) for spec in _tuning_specs(asked, on, way, value)]
    return wanted


def final_specs(asked: CompareSpec, selections: Iterable[Selection]) -> list[RunSpec]:
    """The runs that are reported: every task, method and seed, with the chosen value.

    Args:
        asked: What to compare.
        selections: What was chosen.

    Returns:
        Their specifications.
    """
    chosen = {(s.task, s.method): s.chosen for s in selections}
    return [_spec(asked, on, way, chosen.get((on, way)), seed) for on, way in _pairs(asked) for seed in asked.run_seeds]


def select(asked: CompareSpec, store: Store) -> tuple[Selection, ...]:
    """Choose sigma, rho or alpha of each method on each task, by mean validation accuracy and nothing else.

    A value with which a tuning run diverged is out; of equally good values the smaller one is taken.

    Args:
        asked: What to compare.
        store: Holds the tuning runs.

    Returns:
        One selection for each task and method that has something to choose.

    Raises:
        LabError: Every value diverged.
    """
    selections = []
    for on, way in _pairs(asked):
        m = method(way)
        if m.hyperparameter is None:
            continue
        grid = task(on).grid(m)
        means = [
            fmean(r.validation_accuracy for r in store.results(_tuning_specs(asked, on, way, value))) for value in grid
        ]
        best = max((mean for mean in means if not math.isnan(mean)), default=None)
        if best is None:
            raise LabError(
                f"{way} diverged on {on} with every {m.hyperparameter} of its grid {grid}. Likely cause: the "
                f"learning rate {task(on).setting.learning_rate:g} is too large for it. "
                "Leave the method out with --methods."
            )
        selections.append(
            Selection(
                task=on,
                method=way,
                hyperparameter=m.hyperparameter,
                grid=grid,
                validation_accuracies=tuple(means),
                chosen=grid[means.index(best)],
            )
        )
    return tuple(selections)


def is_drawn(spec: RunSpec) -> bool:
    """Whether the loss surface of a final run is drawn."""
    return task(spec.task).measuring.surface and spec.seed == SURFACE_SEED and spec.method in SURFACE_METHODS


def _missing(store: Store, wanted: Iterable[tuple[RunSpec, bool]]) -> list[Job]:
    """Jobs for what is not stored yet; of a run that diverged there is nothing more to be had."""
    jobs = []
    for spec, final in wanted:
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


def _tuning_specs(asked: CompareSpec, on: str, way: str, value: float) -> list[RunSpec]:
    return [_spec(asked, on, way, value, asked.first_seed + seed) for seed in TUNING_SEEDS]


def _spec(asked: CompareSpec, on: str, way: str, value: float | None, seed: int) -> RunSpec:
    return RunSpec(task=on, method=way, value=value, seed=seed, budget=asked.budget, device=asked.device)


def _pairs(asked: CompareSpec) -> list[tuple[str, str]]:
    return [(on, way) for on in asked.tasks for way in asked.methods]


def _untrained(jobs: Iterable[Job]) -> int:
    return sum(job.stored is None for job in jobs)


def _final_job_weight(*, trained: bool) -> float:
    return (0.0 if trained else Job.TRAINING) + Job.MEASURING
