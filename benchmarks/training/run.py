"""The benchmark of training steps: ratios to the limit, where the rest goes, memory, and how it grows.

Run it in the folder benchmarks/: ``python -m training.run``. ``--only`` and ``--problems`` measure a part and leave the
rest of the stored results as they are. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from curvature.machine import Lock, load

from training.batched import batched
from training.cases import CASES, OURS, named
from training.environment import about, keep_memory
from training.memory import peaks
from training.problems import PROBLEMS
from training.scaling import over_parameters, over_perturbations, over_ranks
from training.shares import shares
from training.timing import interleaved

RESULTS = Path(__file__).parent / "results"
_PROFILED = (OURS[0], OURS[3], OURS[6])


def main() -> None:
    """Measure what is asked for, and store it."""
    options = _options()
    torch.set_num_threads(options.threads)
    for case in CASES:
        if not case.is_there:
            sys.stdout.write(f"{case.name} is left out; to have it: {case.install}\n")
    file: Path = options.out or RESULTS / f"{options.device}.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    device = torch.device(options.device)
    chosen = options.problems or [n for n, p in PROBLEMS.items() if options.device in p.devices]
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "ratios": lambda: {_key(name, options): _ratios(name, device, options) for name in chosen},
        "graphs": lambda: {name: _ratios(name, device, options, compiled=True) for name in chosen},
        "shares": lambda: {name: _shares(name, device) for name in chosen},
        "memory": lambda: {name: peaks(name, _cases(options), device) for name in chosen},
        "parameters": lambda: {"layers": over_parameters(device, options.layers, rounds=options.rounds)},
        "perturbations": lambda: {chosen[0]: over_perturbations(chosen[0], device, (1, 2, 4), rounds=options.rounds)},
        "batched": lambda: {"networks": batched(device, rounds=options.rounds)},
        "ranks": lambda: {chosen[0]: over_ranks(chosen[0], device, options.ranks, rounds=options.rounds)},
    }
    for name in options.only or [n for n in stages if n != "graphs" or device.type == "cuda"]:
        with options.hold:
            before = load()
            found = stages[name]()
        environment = about(device) | {"threads": options.threads, "load": [before, load()]}
        stored[name] = stored.get(name, {}) | {key: {"environment": environment, **v} for key, v in found.items()}
        _store(file, stored)
        sys.stdout.write(f"{name}: stored in {file}\n")
    options.hold.release()


def _key(problem: str, options: argparse.Namespace) -> str:
    """Return what ratios are stored under: on a CPU they depend on the number of threads."""
    return f"{problem}@{options.threads}" if options.device == "cpu" else problem


def _ratios(problem: str, device: torch.device, options: argparse.Namespace, *, compiled: bool = False) -> Any:
    return interleaved(PROBLEMS[problem], _cases(options), device, rounds=options.rounds, compiled=compiled)


def _shares(problem: str, device: torch.device) -> dict[str, Any]:
    return {"cases": {case.name: shares(PROBLEMS[problem], case, device, steps=4) for case in _PROFILED}}


def _cases(options: argparse.Namespace) -> list[Any]:
    return [case for case in named(options.cases) if case.is_there]


def _store(file: Path, stored: dict[str, Any]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(stored, indent=1) + "\n")
    part.replace(file)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what training steps cost above their limit.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--problems", nargs="*", choices=PROBLEMS, help="default: all of the device")
    parser.add_argument("--cases", nargs="*", default=[], metavar="WORD", help="those whose names contain a word")
    parser.add_argument("--only", nargs="*", metavar="STAGE", help="ratios, graphs, shares, memory, ...; default: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--layers", nargs="*", type=int, default=(1, 4, 16, 64), help="sizes, in millions")
    parser.add_argument("--ranks", nargs="*", type=int, default=(1, 2))
    parser.add_argument("--out", type=Path, help="the file of results; default: results/DEVICE.json")
    parser.add_argument("--lock", type=Path, help="a file that other jobs on this machine lock, too")
    options = parser.parse_args()
    options.hold = Lock(options.lock)
    return options


if __name__ == "__main__":
    keep_memory("training.run")
    main()
