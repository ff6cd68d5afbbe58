"""Many jobs over a few worker processes, as one stream of events in the calling process.

Results do not depend on the number of workers: each job is a function of itself, computed on one thread, and with
one worker it is computed in the calling process. Workers only compute; whoever reads the stream stores results.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self

from flatmin.errors import FlatminError
from flatmin_lab.errors import LabError, WorkerError
from flatmin_lab.job import Job, Outcome, execute
from flatmin_lab.spec import Point, RunSpec

_ATTEMPTS = 2  # a worker may be killed for memory that another run took; the second time it is the run itself


@dataclass(frozen=True)
class Started:
    """A job has begun."""

    job: Job


@dataclass(frozen=True)
class Progressed:
    """A job's training has come to a point."""

    job: Job
    point: Point


@dataclass(frozen=True)
class Finished:
    """A job is done."""

    job: Job
    outcome: Outcome


@dataclass(frozen=True)
class Lost:
    """A worker ended before its job did; the job is begun again."""

    job: Job
    message: str


Event = Started | Progressed | Finished | Lost


class Workers:
    """A pool of workers that stay for several rounds of jobs. Leaving it, by an error too, ends them all.

    Args:
        count: How many; one means the calling process itself.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Job]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            worker.end()
        self._idle, self._busy = [], {}

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Do all jobs.

        Args:
            jobs: What to do, roughly in this order.

        Returns:
            Their events as they happen; jobs finish in any order.

        Raises:
            LabError: A job failed, or its worker was killed twice.
        """
        return self._run_here(jobs) if self.count == 1 else self._run_spawned(jobs)

    def _run_here(self, jobs: Iterable[Job]) -> Iterator[Event]:
        for job in jobs:
            yield Started(job)
            course = execute(job)
            while True:
                try:
                    with _one_thread():
                        point = next(course)
                except StopIteration as end:
                    yield Finished(job, end.value)
                    break
                yield Progressed(job, point)

    def _run_spawned(self, jobs: Iterable[Job]) -> Iterator[Event]:
        pending = deque(jobs)
        losses: Counter[RunSpec] = Counter()
        while pending or self._busy:
            while pending and len(self._busy) < self.count:
                job = pending.popleft()
                worker = self._idle.pop() if self._idle else _Worker()
                self._busy[worker.connection] = (worker, job)
                try:
                    worker.connection.send(job)
                except OSError:
                    continue  # it died while idle; its connection reports that below
                yield Started(job)
            for connection in wait(list(self._busy)):
                assert isinstance(connection, Connection)  # noqa: S101  (wait returns what it was given)
                event = self._hear(connection)
                if isinstance(event, Lost):
                    losses[event.job.spec] += 1
                    if losses[event.job.spec] >= _ATTEMPTS:
                        raise WorkerError(f"{event.message} It was tried {_ATTEMPTS} times. {_LOST_ADVICE}")
                    pending.appendleft(event.job)
                yield event

    def _hear(self, connection: Connection) -> Event:
        worker, job = self._busy[connection]
        try:
            message = connection.recv()
        except (EOFError, OSError):
            del self._busy[connection]
            return Lost(job, f"A worker (pid {worker.process.pid}) {worker.end()} while it ran {job.spec.name}.")
        if isinstance(message, Point):
            return Progressed(job, message)
        del self._busy[connection]
        self._idle.append(worker)
        if isinstance(message, Outcome):
            return Finished(job, message)
        raise LabError(message)


_LOST_ADVICE = (
    "Likely cause: too little memory, or something ended the process. Finished results are kept; run the same "
    "command again, with fewer --workers."
)


class _Worker:
    """One spawned process and the line to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        theirs.close()

    def end(self) -> str:
        """End the process and say how it came to its end."""
        self.connection.close()
        self.process.join(timeout=0.2)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()
        code = self.process.exitcode or 0
        return f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with {code}"


def _serve(connection: Connection) -> None:
    """The life of a worker: jobs in, points and outcomes out, until the line or the parent is gone."""
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            connection.send(_answer(connection, connection.recv()))
        except (EOFError, OSError):
            return


def _answer(connection: Connection, job: Job) -> Outcome | str:
    course = execute(job)
    try:
        while True:
            connection.send(next(course))
    except StopIteration as end:
        return end.value
    except FlatminError as error:
        return str(error)
    except Exception:  # noqa: BLE001  (a defect: its whole account goes to the parent, which ends with it)
        return f"{job.spec.name} failed in a worker:\n{traceback.format_exc()}"


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in a worker: sums over several threads round differently."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started in here ignores Ctrl-C from its first instruction: the parent alone decides what it means."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
