"""What all ways of doing many jobs have in common: the events they tell of, and what happens to a job that is lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from flatmin_lab.errors import LabError, WorkerError
from flatmin_lab.job import Job, Outcome
from flatmin_lab.spec import Point, RunSpec


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


class Pool(ABC):
    """Does jobs, several at a time. Leaving it, by an error or Ctrl-C too, ends what is still at work.

    Results do not depend on where or how many at a time. Workers only compute; whoever reads the stream stores. A job
    is begun again only once its worker is known to be gone, and what a worker did for it until then counts for nothing.

    Attributes:
        count: How many jobs at a time.
        attempts: How often a job is begun before its losses are taken for its own fault.
        advice: What to do then, for the message.
    """

    attempts: ClassVar[int]
    advice: ClassVar[str]

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Do all jobs.

        Args:
            jobs: What to do, roughly in this order.

        Returns:
            Their events as they happen; jobs finish in any order.

        Raises:
            LabError: A job failed, or was lost too often.
        """
        pending, losses = deque(jobs), Counter[RunSpec]()
        running = 0
        while pending or running:
            begun = [pending.popleft() for _ in range(min(self.count - running, len(pending)))]
            running += len(begun)
            yield from self._begin(begun)
            for event in self._hear():
                running -= isinstance(event, Finished | Lost)
                if isinstance(event, Lost):
                    losses[event.job.spec] += 1
                    if losses[event.job.spec] >= self.attempts:
                        raise WorkerError(f"{event.message} It was tried {self.attempts} times. {self.advice}")
                    pending.appendleft(event.job)
                yield event

    @abstractmethod
    def _begin(self, jobs: Sequence[Job]) -> Iterable[Event]:
        """Hand out jobs; `Started` may be told here, or later by `_hear`."""

    @abstractmethod
    def _hear(self) -> Iterable[Event]:
        """Wait until there is something to tell, or for a moment, and tell it."""

    @abstractmethod
    def _end(self) -> None:
        """End what is still at work."""


def told(job: Job, said: Point | Outcome | str | None) -> Event:
    """The event that a worker's words are.

    Args:
        job: What it works on.
        said: None at the beginning, points of the history, and last an outcome or what went wrong.

    Returns:
        The event.

    Raises:
        LabError: Something went wrong.
    """
    if said is None:
        return Started(job)
    if isinstance(said, Point):
        return Progressed(job, said)
    if isinstance(said, Outcome):
        return Finished(job, said)
    raise LabError(said)
