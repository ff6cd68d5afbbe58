"""What a worker does with a job, wherever it is: on one thread, with errors told instead of raised."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from flatmin.errors import FlatminError
from flatmin_lab.data.root import VARIABLE
from flatmin_lab.header import comparable
from flatmin_lab.job import Job, Outcome, execute
from flatmin_lab.spec import Point


@dataclass(frozen=True)
class Parcel:
    """A job for another machine, with what it reads from this one.

    Attributes:
        job: The job.
        weights: The content of its file of weights, which that machine may not see.
        data_root: What the environment names as the data root here; it must be the same folder there.
        comparable: What the code must have in common for runs to be compared.
    """

    job: Job
    weights: bytes | None
    data_root: str | None
    comparable: Mapping[str, int | str]

    @classmethod
    def of(cls, job: Job) -> Parcel:
        """Pack a job."""
        named = os.environ.get(VARIABLE)
        return cls(
            job,
            weights=job.weights.read_bytes() if job.weights else None,
            data_root=str(Path(named).absolute()) if named else None,
            comparable=comparable(),
        )


def answer(job: Job) -> Generator[Point, None, Outcome | str]:
    """Do a job.

    Args:
        job: What is wanted.

    Yields:
        Points of the training history.

    Returns:
        What came of it, or the message of an error that flatmin raised.
    """
    try:
        return (yield from execute(job))
    except FlatminError as error:
        return str(error)


def unpacked(parcel: Parcel) -> Generator[Point, None, Outcome | str]:
    """Do the job of a parcel in a process that belongs to it alone, as `answer` does.

    Args:
        parcel: The job and what it needs.

    Yields:
        Points of the training history.

    Returns:
        What came of it, or what went wrong; where the code is another than the sender's, that.
    """
    here = comparable()
    if here != parcel.comparable:
        names = [name for name, value in parcel.comparable.items() if here.get(name) != value]
        differing = "; ".join(f"{n} is {here.get(n)} there and {parcel.comparable[n]} here" for n in names)
        return (
            f"A worker on {os.uname().nodename} has another version of flatmin, whose runs cannot be compared with "
            f"these: {differing}. Install the same version on every machine."
        )
    if parcel.data_root is not None:
        os.environ[VARIABLE] = parcel.data_root
    with one_thread(), _weights(parcel.weights) as file:
        return (yield from answer(replace(parcel.job, weights=file)))


@contextmanager
def _weights(content: bytes | None) -> Iterator[Path | None]:
    if content is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.safetensors")
        file.write_bytes(content)
        yield file


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as in every worker: sums over several threads round differently."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
