"""The comparison: every method tuned alike on validation data, then run over the same seeds with the same budget.

Everything reported is put together from stored results alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from flatmin.checks import whole
from flatmin.errors import ArgumentError
from flatmin_lab.clusters.options import Cluster, SlurmOptions
from flatmin_lab.methods import method
from flatmin_lab.plan import Planned, final_specs, first_round, is_drawn, rounds, select, tuning_specs
from flatmin_lab.run import usable_device
from flatmin_lab.search import searcher
from flatmin_lab.spec import Comparison, Study
from flatmin_lab.store import Store
from flatmin_lab.sweep import Event, Finished, pool_of
from flatmin_lab.tasks import task


def compare(
    asked: Study,
    store: Store,
    *,
    workers: int | None,
    cluster: Cluster = "local",
    slurm: SlurmOptions | None = None,
    watch: Callable[[Event | Planned], None] = lambda _: None,
) -> Comparison:
    """Run what is not yet stored, and put the comparison together.

    Args:
        asked: What to run; see `check`.
        store: An entered run folder.
        workers: Runs at a time, None for as many as the cluster suggests; the numbers do not depend on it.
        cluster: Where they are made.
        slurm: What each run asks of Slurm.
        watch: Told about everything that happens.

    Returns:
        The comparison.

    Raises:
        LabError: A run failed for good, or no value of a grid gave a finite loss.
        StoreError: The folder holds something else or cannot be written.
    """
    check(asked, workers, cluster)
    store.begin(asked)
    with pool_of(cluster, workers, store.folder, slurm) as pool:
        for jobs, planned in rounds(asked, store):
            watch(planned)
            for event in pool.run(jobs):
                if isinstance(event, Finished):
                    store.save(event.outcome)
                watch(event)
    return assemble(asked, store)


def check(asked: Study, workers: int | None, cluster: Cluster = "local") -> None:
    """Raise the first reason why ``asked`` cannot be run, before anything is written.

    Args:
        asked: What to compare.
        workers: Runs at a time; None for as many as the cluster suggests.
        cluster: Where they are made; the device must be on this machine only if they are made here.

    Raises:
        ArgumentError: A name is unknown, a list empty, a number too small, the budget not shared evenly by the
            methods, or the device not there.
        DataError: What a task needs under the data root is not there.
        MissingPackageError: The search needs a package that is not installed.
    """
    if not asked.arms:
        raise ArgumentError("there is no method or no task, so there is nothing to run. Name one or more of each.")
    for name in asked.methods:
        method(name)
    for name in asked.tasks:
        task(name)
    whole("seeds", asked.seeds, minimum=1, hint="It is the number of paired runs of each method.")
    cost = math.lcm(*(method(name).evaluations_per_step for name in asked.methods))
    for budget in asked.budgets:
        whole("budget", budget, minimum=cost, hint="It is the number of gradient evaluations of each run.")
        if over := budget % cost:
            raise ArgumentError(
                f"budget is {budget}, but these methods spend up to {cost} gradient evaluations a step, and all must "
                f"come to the same number. Take a multiple of {cost}, such as {budget + cost - over}."
            )
    if workers is not None:
        whole("workers", workers, minimum=1, hint="It is the number of processes; 1 uses no other than this one.")
    if cluster == "local":
        usable_device(asked.device)
    searcher(asked.search)
    for name in asked.tasks:
        task(name).require()


def assemble(asked: Study, store: Store) -> Comparison:
    """Put a comparison together from stored results alone.

    Args:
        asked: What to compare.
        store: An entered run folder.

    Returns:
        The comparison.

    Raises:
        StoreError: Some of its runs are missing.
    """
    store.results(list(first_round(asked, store)))
    selections = select(asked, store)
    finals = final_specs(asked, selections)
    results = store.results(finals)
    surfaces = [store.surface(spec) for spec in finals if is_drawn(spec)]
    return Comparison(
        spec=asked,
        selections=selections,
        results=tuple(results),
        tuning=tuple(store.results(tuning_specs(asked, store))),
        surfaces=tuple(s for s in surfaces if s is not None),
        environment=store.header().environment,
    )


def publish(comparison: Comparison, store: Store) -> dict[str, Path]:
    """Write what people and programs read: everything as JSON, one row a run as CSV, and the page.

    Args:
        comparison: What to write.
        store: Where.

    Returns:
        The files by what they are: ``comparison``, ``results``, ``report``.

    Raises:
        StoreError: One of them cannot be written.
    """
    from flatmin_lab.report.page import write_report
    from flatmin_lab.report.table import results_frame

    page = store.folder / "report.html"
    write_report(comparison, page)
    return {
        "comparison": store.write("comparison.json", comparison.model_dump_json(indent=1)),
        "results": store.write("results.csv", results_frame(comparison).to_csv(index=False)),
        "report": page,
    }
