"""How time grows with the number of parameters, of perturbations and of ranks."""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from training.cases import Case, nso, probes
from training.problems import PROBLEMS, Instance, layers
from training.timing import interleaved, timed

_LAWS = ("gaussian", "rademacher")


def over_parameters(device: torch.device, numbers: Sequence[int], *, rounds: int) -> dict[str, Any]:
    """Return, for networks of so many layers, what a step costs above its limit, with the slope in logarithms."""
    rows = []
    for number in numbers:
        cases = [Case(law, 2, functools.partial(nso, noise=law)) for law in _LAWS]
        found = interleaved(layers(number), cases, device, rounds=rounds)
        rows.append({"parameters": found["parameters"], **{law: _above(found["cases"][law]) for law in _LAWS}})
    size = [row["parameters"] for row in rows]
    return {"rows": rows, "slopes": {law: slope(size, [row[law]["above"] for row in rows]) for law in _LAWS}}


def over_perturbations(problem: str, device: torch.device, numbers: Sequence[int], *, rounds: int) -> dict[str, Any]:
    """Return the ratio of a step with k perturbations to 2k passes and one step, and the slope of its time in k."""
    cases = [Case(str(k), 2 * k, functools.partial(nso, num_perturbations=k)) for k in numbers]
    found = interleaved(PROBLEMS[problem], cases, device, rounds=rounds)["cases"]
    rows = [{"k": k, "ratio": median(found[str(k)]["ratios"]), **_above(found[str(k)])} for k in numbers]
    return {"problem": problem, "rows": rows, "slopes": {"step": slope(numbers, [row["seconds"] for row in rows])}}


def over_ranks(problem: str, device: torch.device, numbers: Sequence[int], *, rounds: int) -> dict[str, Any]:
    """Return the ratio of NSO under DistributedDataParallel to two passes of which the last averages, by ranks."""
    rows = []
    for ranks in numbers:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder)
            spawn(_rank, (ranks, problem, device.type, rounds, str(file)), nprocs=ranks)
            ratios, seconds = torch.load(file / "found.pt", weights_only=True)
        rows.append({"ranks": ranks, "ratio": median(ratios), "seconds": median(seconds), "ratios": ratios})
    return {"problem": problem, "cores": os.cpu_count(), "rows": rows}


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return the slope of log y over log x by least squares; None where a y is not above 0."""
    if len(x) < 2 or min(y) <= 0:
        return None
    a, b = ([math.log(v) for v in values] for values in (x, y))
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    above = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return round(above / sum((p - mean_a) ** 2 for p in a), 3)


def _above(row: dict[str, Any]) -> dict[str, float]:
    differences = [a - b for a, b in zip(row["seconds"], row["limit_seconds"], strict=True)]
    return {"above": round(median(differences), 6), "seconds": median(row["seconds"])}


def _rank(rank: int, ranks: int, problem: str, device: str, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    backend = "nccl" if device == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    limit, ours = Instance(PROBLEMS[problem], place), Instance(PROBLEMS[problem], place)
    steps = _ideal_in_parallel(limit), probes(ours, _parallel(ours))
    found: list[tuple[float, ...]] = []
    for number in range(rounds + 2):
        distributed.barrier()
        order = (0, 1) if number % 2 else (1, 0)
        took = {which: timed(steps[which], limit) for which in order}
        found.append((took[0], took[1]))
    if rank == 0:
        kept = found[2:]
        torch.save(([b / a for a, b in kept], [b for _, b in kept]), Path(folder) / "found.pt")
    distributed.destroy_process_group()


def _parallel(instance: Instance) -> DistributedDataParallel:
    places = [instance.device.index] if instance.device.type == "cuda" else None
    instance.forward = model = DistributedDataParallel(instance.model, device_ids=places)
    return model


def _ideal_in_parallel(instance: Instance) -> Callable[[], None]:
    base, model = instance.sgd(), _parallel(instance)

    def step() -> None:
        base.zero_grad()
        with model.no_sync():
            instance.backward()
        instance.backward()
        base.step()

    return step
