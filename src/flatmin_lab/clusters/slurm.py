"""Jobs by Slurm, through submitit.

Each job is one Slurm job. It writes what it tells as lines of a file in the folder it was submitted from, which all
machines see; its outcome comes back as submitit brings it. A job that is preempted is put back into the queue by
submitit; one that ends without an outcome is begun again by the pool; one that runs out of time is given up at once,
since it would again.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatmin_lab.clusters.options import SlurmOptions
from flatmin_lab.clusters.pool import Event, Finished, Lost, Pool, told
from flatmin_lab.clusters.work import Parcel, unpacked
from flatmin_lab.data.root import required
from flatmin_lab.errors import LabError, WorkerError
from flatmin_lab.spec import Point

if TYPE_CHECKING:
    from flatmin_lab.job import Job, Outcome

COUNT = 16
"""How many jobs are with Slurm at a time, unless told otherwise."""


class SlurmPool(Pool):
    """Jobs that wait and run in Slurm's queue.

    Args:
        count: How many are in the queue or at work at a time.
        folder: Where submitit keeps scripts, logs and what is sent; all machines must see it. What belongs to a job is
            removed once it has finished.
        options: What each run asks for.
        executor: ``slurm``, or ``local`` for processes on this machine, as submitit calls them.
        pause: Seconds between two looks at the folder.
        patience: Seconds that a shared disk may take to show a result after the end of its job.

    Raises:
        MissingPackageError: submitit is not installed.
        WorkerError: This machine cannot submit to Slurm.
    """

    attempts = 4  # machines come and go for reasons that have nothing to do with a run
    advice = "Finished results are kept, and the same command continues with them."

    def __init__(
        self,
        count: int | None,
        folder: Path,
        options: SlurmOptions | None = None,
        *,
        executor: str = "slurm",
        pause: float = 2.0,
        patience: float = 15.0,
    ) -> None:
        super().__init__(count or COUNT)
        self._options, self._pause, self._patience = options or SlurmOptions(), pause, patience
        submitit = required("submitit", "submitit", "does the jobs with --cluster slurm", "flatmin[cluster]")
        if executor == "slurm" and shutil.which("sbatch") is None:
            raise WorkerError(
                "Slurm cannot be reached: there is no sbatch on this machine. Run the command on a login node of the "
                "cluster, or without --cluster slurm."
            )
        self._executor: Any = submitit.AutoExecutor(folder, cluster=executor)
        self._busy: dict[str, _Submitted] = {}

    def _begin(self, jobs: Sequence[Job]) -> Iterable[Event]:
        by_device: dict[bool, list[Job]] = {}
        for job in jobs:
            by_device.setdefault(job.spec.device.startswith("cuda"), []).append(job)
        for cuda, group in by_device.items():
            self._executor.update_parameters(**self._parameters(gpus=int(cuda)))
            work = _Work(self._options.minutes)
            with self._executor.batch():  # one array of jobs: a single call of Slurm
                sent = [self._executor.submit(work, Parcel.of(job)) for job in group]
            for handle, job in zip(sent, group, strict=True):
                self._busy[handle.job_id] = _Submitted(handle, job, self._patience)
        return ()

    def _parameters(self, *, gpus: int) -> dict[str, Any]:
        asked = self._options
        optional = {"slurm_partition": asked.partition, "slurm_account": asked.account, "gpus_per_node": gpus or None}
        return {
            "name": "flatmin",
            "timeout_min": asked.minutes,
            "mem_gb": asked.memory,
            "cpus_per_task": 1,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _hear(self) -> Iterator[Event]:
        heard = False
        for name, submitted in list(self._busy.items()):
            for event in submitted.events():
                if isinstance(event, Finished | Lost):
                    del self._busy[name]
                heard = True
                yield event
        if not heard:
            time.sleep(self._pause)

    def _end(self) -> None:
        for submitted in self._busy.values():
            with contextlib.suppress(OSError):
                submitted.handle.cancel(check=False)
        self._busy = {}


class _Submitted:
    """A job that is with Slurm, and how much of what it told has been read.

    Args:
        handle: As submitit has it.
        job: The job.
        patience: Seconds that a shared disk may take to show a result after the end.
    """

    def __init__(self, handle: Any, job: Job, patience: float) -> None:
        self.handle = handle
        self.job = job
        self._patience = patience
        self._begun = False
        self._read = 0
        self._ended: float | None = None

    def events(self) -> Iterator[Event]:
        """What has happened since the last call."""
        done = self.handle.done()  # asked first, so that nothing told before the end is missed
        for said in self._told():
            if said is not None or not self._begun:  # Slurm may have begun it once more
                self._begun = True
                yield told(self.job, said)
        if not done:
            return
        if self.handle.paths.result_pickle.exists():
            yield self._result()
            return
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended >= self._patience:
            yield self._lost()

    def _told(self) -> list[Point | None]:
        try:
            with _course(self.handle.paths).open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return []
        whole, _, _ = content.rpartition(b"\n")  # the last line may be half written
        self._read += len(whole) + bool(whole)
        return [Point.model_validate_json(line) if line != b"null" else None for line in whole.splitlines()]

    def _result(self) -> Event:
        error = self.handle.exception()
        if error is not None:
            raise LabError(f"{self.job.spec.name} failed in a worker:\n{error}")
        event = told(self.job, self.handle.result())
        for file in self.handle.paths.folder.glob(f"{self.handle.job_id}_*"):
            file.unlink(missing_ok=True)
        return event

    def _lost(self) -> Event:
        state = str(self.handle.state)
        message = f"Slurm job {self.handle.job_id} ended without a result ({state}) while it ran {self.job.spec.name}."
        logs = f"See {self.handle.paths.stderr}."
        if state.startswith("TIMEOUT"):
            raise WorkerError(f"{message} Give it more time: --slurm.minutes. {logs}")
        if state.startswith("OUT_OF_ME"):
            raise WorkerError(f"{message} Give it more memory: --slurm.memory. {logs}")
        self.handle.cancel(check=False)  # Slurm may be set to begin it again by itself
        return Lost(self.job, f"{message} {logs}")


def _course(paths: Any) -> Path:
    """The file in which a job, known by its paths, tells where it is."""
    return paths.folder / f"{paths.job_id}_course.jsonl"


@dataclass(frozen=True)
class _Work:
    """What Slurm runs.

    Attributes:
        minutes: The time it is given, for the message.
    """

    minutes: int

    def __call__(self, parcel: Parcel) -> Outcome | str:
        import submitit
        from submitit.core.utils import UncompletedJobError

        try:
            with _course(submitit.JobEnvironment().paths).open("a", buffering=1) as course:  # whole lines at a time
                course.write("null\n")
                points = unpacked(parcel)
                while True:
                    course.write(next(points).model_dump_json() + "\n")
        except StopIteration as end:
            return end.value
        except UncompletedJobError:  # raised by submitit where it stands when Slurm says that time is up
            return (
                f"{parcel.job.spec.name} took longer than the {self.minutes} minutes it was given. Give it more time: "
                "--slurm.minutes. Finished results are kept, and the same command continues with them."
            )
