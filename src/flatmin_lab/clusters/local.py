"""Jobs in this process, or in a few spawned ones on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from flatmin_lab.clusters.pool import Event, Finished, Lost, Pool, Progressed, Started, told
from flatmin_lab.clusters.work import answer, one_thread
from flatmin_lab.job import Job, Outcome, execute


class Workers(Pool):
    """A pool of processes that stay for several rounds of jobs.

    Args:
        count: How many; one means the calling process itself.
    """

    attempts = 2  # a worker may be killed for memory that another run took; the second time it is the run itself
    advice = (
        "Likely cause: too little memory, or something ended the process. Finished results are kept; run the same "
        "command again, with fewer --workers."
    )

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Job]] = {}

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:  # noqa: D102  (as the pool's)
        return _run_here(jobs) if self.count == 1 else super().run(jobs)

    def _begin(self, jobs: Sequence[Job]) -> Iterator[Event]:
        for job in jobs:
            worker = self._idle.pop() if self._idle else _Worker()
            self._busy[worker.connection] = (worker, job)
            try:
                worker.connection.send(job)
            except OSError:
                continue  # it died while idle; its connection reports that when it is heard
            yield Started(job)

    def _hear(self) -> Iterator[Event]:
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)  # noqa: S101  (wait returns what it was given)
            yield self._heard(connection)

    def _heard(self, connection: Connection) -> Event:
        worker, job = self._busy[connection]
        try:
            message = connection.recv()
        except (EOFError, OSError):
            del self._busy[connection]
            return Lost(job, f"A worker (pid {worker.process.pid}) {worker.end()} while it ran {job.spec.name}.")
        event = told(job, message)
        if isinstance(event, Finished):
            del self._busy[connection]
            self._idle.append(worker)
        return event

    def _end(self) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            worker.end()
        self._idle, self._busy = [], {}


def _run_here(jobs: Iterable[Job]) -> Iterator[Event]:
    for job in jobs:
        yield Started(job)
        course = execute(job)
        while True:
            try:
                with one_thread():
                    point = next(course)
            except StopIteration as end:
                yield Finished(job, end.value)
                break
            yield Progressed(job, point)


class _Worker:
    """One spawned process and the line to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _interrupts_held():
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
    course = answer(job)
    try:
        while True:
            connection.send(next(course))
    except StopIteration as end:
        return end.value
    except Exception:  # noqa: BLE001  (a defect: its whole account goes to the parent, which ends with it)
        return f"{job.spec.name} failed in a worker:\n{traceback.format_exc()}"


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process started in here never sees Ctrl-C: the parent alone decides what it means, and hears of it after this.

    The new process inherits the mask. Of the parent's own threads others may still take the signal, so it is noted.
    """
    resource_tracker.ensure_running()  # else it is started with the first process, and lifts the mask
    noted: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: noted.append(number)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)


def num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1
