"""Many jobs as one stream of events in the calling process, wherever they are done.

Results do not depend on the number of workers or on where they are: each job is a function of itself, computed on one
thread. Workers only compute; whoever reads the stream stores results.
"""

from __future__ import annotations

from pathlib import Path

from flatmin.checks import whole
from flatmin_lab.clusters.local import Workers, num_cores
from flatmin_lab.clusters.options import Cluster, SlurmOptions
from flatmin_lab.clusters.pool import Event, Finished, Lost, Pool, Progressed, Started
from flatmin_lab.clusters.ray import RayPool
from flatmin_lab.clusters.slurm import SlurmPool


def pool_of(cluster: Cluster, workers: int | None, folder: Path, slurm: SlurmOptions | None = None) -> Pool:
    """The pool that does the jobs of a sweep.

    Args:
        cluster: Where.
        workers: Jobs at a time; None for the cores of this machine or of the Ray cluster, or 16 with Slurm.
        folder: The run folder; Slurm's own files go into a folder within.
        slurm: What each run asks of Slurm.

    Returns:
        The pool, to be entered.

    Raises:
        ArgumentError: ``workers`` is no positive number.
        MissingPackageError: A package that this cluster needs is not installed.
        WorkerError: This machine cannot submit to Slurm.

    Example:
        >>> pool_of("local", 4, Path("runs")).count
        4
    """
    if workers is not None:
        whole("workers", workers, minimum=1, hint="It is the number of runs at a time.")
    if cluster == "ray":
        return RayPool(workers)
    if cluster == "slurm":
        return SlurmPool(workers, folder / "slurm", slurm)
    return Workers(num_cores() if workers is None else workers)


__all__ = [
    "Event",
    "Finished",
    "Lost",
    "Pool",
    "Progressed",
    "Started",
    "Workers",
    "num_cores",
    "pool_of",
]
