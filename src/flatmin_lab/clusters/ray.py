"""Jobs on a Ray cluster.

Each job is one Ray task that streams what it tells, as a generator: first that it has begun, then points of its
history, and last what came of it. Ray repeats nothing by itself (``max_retries=0``): when a node dies, the streams of
its tasks end in an error, and the pool begins these jobs again elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from flatmin_lab.clusters.pool import Event, Finished, Lost, Pool, told
from flatmin_lab.clusters.work import Parcel, unpacked
from flatmin_lab.data.root import required
from flatmin_lab.errors import LabError, WorkerError
from flatmin_lab.job import Job, Outcome
from flatmin_lab.spec import Point

ADDRESS = "RAY_ADDRESS"
"""Names the cluster, as Ray's own tools have it: ``host:port`` of its head, or ``auto``."""

_STORE_BYTES = 200_000_000  # of a cluster started here: outcomes pass through it one by one


def streamed(parcel: Parcel) -> Iterator[Point | Outcome | str | None]:
    """What a task of Ray's does: the job of a parcel, told as `told` takes it.

    Args:
        parcel: The job and what it needs.

    Yields:
        None when it begins, points of the history, and last what came of it or what went wrong.
    """
    yield None
    yield (yield from unpacked(parcel))


class RayPool(Pool):
    """Jobs on the Ray cluster that ``RAY_ADDRESS`` names, or on one started on this machine for as long as it is used.

    A process that is connected to Ray already stays so.

    Args:
        count: How many jobs at a time; None for as many as the cluster has cores when it is entered.

    Raises:
        MissingPackageError: Ray is not installed.
        WorkerError: On entering, where the cluster cannot be reached.
    """

    attempts = 4  # machines come and go for reasons that have nothing to do with a run
    advice = (
        "Likely cause: the run needs more memory than a node has, or nodes end all the time. Finished results are "
        "kept, and the same command continues with them."
    )

    work = staticmethod(streamed)

    def __init__(self, count: int | None = None) -> None:
        super().__init__(count or 0)
        self._ray = required("ray", "Ray", "does the jobs with --cluster ray", "flatmin[cluster]")
        self._busy: dict[Any, Job] = {}
        self._left = contextlib.ExitStack()
        self._task: Any = None

    def __enter__(self) -> Self:
        # what Ray tells of its nodes it prints on standard output, which is for results
        self._left.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            if not self._ray.is_initialized():
                self._left.callback(_restored(signal.SIGTERM))
                self._connect(os.environ.get(ADDRESS))
                self._left.callback(self._ray.shutdown)
        except BaseException:
            self._left.close()
            raise
        self.count = self.count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._task = self._ray.remote(self.work)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._left:
            self._end()

    def _connect(self, address: str | None) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not address:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless asked for
            self._ray.init(
                address="local",
                num_cpus=self.count or None,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                **quiet,
            )
            return
        if address.startswith("ray://"):
            raise WorkerError(
                f"{ADDRESS} is {address}, an address of Ray Client, through which results cannot be streamed. Run the "
                "command on a machine of the cluster, or hand it in: ray job submit -- flatmin ..."
            )
        try:
            self._ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0].rstrip(".")
            raise WorkerError(
                f"{ADDRESS} is {address}, but no Ray cluster can be used there: {first_line}. Likely cause: it does "
                "not run, or with another version of Ray. Start it with `ray start --head`, or unset the variable to "
                "use this machine alone."
            ) from error

    def _begin(self, jobs: Sequence[Job]) -> Iterable[Event]:
        for job in jobs:
            gpus = 1 if job.spec.device.startswith("cuda") else 0
            stream = self._task.options(num_cpus=1, num_gpus=gpus, max_retries=0, name=job.spec.name)
            self._busy[stream.remote(Parcel.of(job))] = job
        return ()

    def _hear(self) -> Iterator[Event]:
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        for stream in ready:
            event = self._heard(stream, self._busy[stream])
            if isinstance(event, Finished | Lost):
                del self._busy[stream]
            yield event

    def _heard(self, stream: Any, job: Job) -> Event:
        errors = self._ray.exceptions
        try:
            return told(job, self._ray.get(next(stream)))
        except errors.RayTaskError as error:  # a defect, or a node without flatmin
            raise LabError(f"{job.spec.name} failed in a worker:\n{error}") from error
        except (errors.RayError, StopIteration) as error:
            why = (str(error).strip().splitlines() or ["its stream ended"])[0].rstrip(".")
            return Lost(job, f"A worker of the Ray cluster was lost while it ran {job.spec.name}: {why}.")

    def _end(self) -> None:
        for stream in self._busy:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(stream, force=True)
        self._busy = {}


def _restored(number: signal.Signals) -> Callable[[], object]:
    """What puts back the handler of a signal, which Ray replaces for good."""
    former = signal.getsignal(number)
    if former is None or threading.current_thread() is not threading.main_thread():
        return lambda: None
    return lambda: signal.signal(number, former)
