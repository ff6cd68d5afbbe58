"""The machine: cores, memory and what a container allows of them, the disk, and the folder that runs are kept in."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flatmin_lab.doctor.finding import Finding, note, ok, problem

_GIB = 2**30
_CGROUPS = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")  # noqa: S108 (looked at, not written to)
_LITTLE_MEMORY, _LITTLE_DISK, _NO_DISK, _LITTLE_SHARED = 2 * _GIB, 2 * _GIB, _GIB // 10, _GIB
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def check_machine() -> Iterator[Finding]:
    """Examine cores, threads and memory."""
    yield from _cores()
    yield from _memory()
    if _SHARED.is_dir() and (size := shutil.disk_usage(_SHARED).total) < _LITTLE_SHARED:
        yield note(
            f"{_SHARED} has {size / _GIB:.2f} GiB: workers of a DataLoader, Ray and ranks of one machine meet there.",
            "a container was started with the default of 64 MB.",
            "docker run --shm-size=8g ...",
        )


def _cores() -> Iterator[Finding]:
    whole, allowed, quota = os.cpu_count() or 1, _allowed(), cpu_quota(_CGROUPS)
    usable = min(allowed, quota)
    parts = [f"{platform.system()} {platform.release()} on {platform.machine()}, {whole} cores"]
    parts += [f"of which this process may use {allowed}"] if allowed < whole else []
    parts += [f"of which the container may use the time of {quota:g}"] if quota < allowed else []
    yield ok(", ".join(parts) + ".")
    fits = max(1, int(usable))
    for name in _THREADS:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > fits:
            yield note(
                f"{name} is {value}, and there are {usable:g} cores to use: threads wait for each other.",
                "it was set for another machine.",
                f"export {name}={fits}",
            )
    if quota < allowed and not os.environ.get("OMP_NUM_THREADS"):
        yield note(
            f"torch starts a thread for each of {allowed} cores, and the container has the time of {quota:g}.",
            "the limit is one of time, which torch does not see.",
            f"export OMP_NUM_THREADS={fits}",
        )


def _allowed() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cpu_quota(root: Path) -> float:
    """Return how many cores' time Linux's control group at ``root`` may use; infinite where there is no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except ValueError:  # "max"
        return math.inf


def memory_limit(root: Path) -> float:
    """Return the bytes that Linux's control group at ``root`` may take; infinite where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((root / name).read_text())
        except (OSError, ValueError):
            continue
    return math.inf


def _memory() -> Iterator[Finding]:
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= names.keys():
        return
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit(_CGROUPS)
    usable = min(whole, limit)
    said = f"{whole / _GIB:.1f} GiB of memory" + (
        f", the container may take {limit / _GIB:.1f}" if limit < whole else ""
    )
    if usable < _LITTLE_MEMORY:
        yield note(
            f"{said}: runs on digits fit, fine-tuning does not.",
            "a small machine, or a container with a limit." if limit >= whole else "the container was given a limit.",
            "docker run --memory=8g ..." if limit < whole else "flatmin compare --workers 1",
        )
    else:
        yield ok(f"{said}.")


def check_folder(folder: Path) -> Iterator[Finding]:
    """Examine the folder that runs are kept in: whether it can be written to, and what its disk has left.

    Args:
        folder: It need not exist, and is not made.
    """
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not place.is_dir():
        yield problem(
            f"{folder} cannot be made: {place} is a file.",
            "a file stands where a folder should be.",
            f"mv '{place}' '{place}.old'",
        )
        return
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"flatmin")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield problem(
            f"{place}, where runs are kept, cannot be written to: {error.strerror or error}.",
            "the folder belongs to another user, or its disk is full or read-only.",
            "flatmin compare --out ~/runs",
        )
        return
    free = shutil.disk_usage(place).free
    found = f"{folder.absolute()}, where runs are kept, can be written to; its disk has {free / _GIB:.1f} GiB left"
    if free < _LITTLE_DISK:
        judge = problem if free < _NO_DISK else note
        yield judge(
            f"{found}: too little for checkpoints and weights of large networks.",
            "the disk is nearly full.",
            f"du --human-readable --max-depth=2 '{place}' | sort --human-numeric-sort | tail",
        )
    else:
        yield ok(f"{found}.")
