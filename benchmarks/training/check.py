"""Measure the ratios anew and compare them with those that are stored: ``python -m training.check``.

Ends with 1 if a way of training has become slower against its limit than the tolerance allows. A ratio that has
fallen is told, too: then the stored results are to be made anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from statistics import median
from typing import Any

import torch

from training.cases import OURS
from training.environment import hardware, keep_memory
from training.problems import PROBLEMS
from training.run import RESULTS
from training.timing import interleaved

TOLERANCE = 0.10
"""Of the median of nine ratios on a shared machine with two cores; what is looked for are passes that came back."""


def main() -> None:
    """Measure and compare."""
    options = _options()
    device = torch.device(options.device)
    file = RESULTS / f"{options.device}.json"
    if not file.exists():
        sys.exit(f"There is nothing to compare with: {file} does not exist. Run `make bench` first.")
    stored = json.loads(file.read_text())["ratios"]
    slower = []
    for key in stored:
        problem, environment = key.partition("@")[0], stored[key]["environment"]
        if options.problems and problem not in options.problems:
            continue
        if environment["hardware"] != hardware(device):
            sys.exit(f"The stored ratios are of {environment['hardware']}, this is {hardware(device)}: make them anew.")
        torch.set_num_threads(environment["threads"])
        cases = [case for case in OURS if case.name in stored[key]["cases"]]
        found = interleaved(PROBLEMS[problem], cases, device, rounds=options.rounds)
        slower += [name for name, row in found["cases"].items() if _is_slower(key, name, row, stored, options)]
    if slower:
        sys.exit(f"Slower than stored by more than {options.tolerance:.0%}: {', '.join(slower)}.")


def _is_slower(key: str, name: str, row: dict[str, Any], stored: Any, options: argparse.Namespace) -> bool:
    before, now = (median(rows["ratios"]) for rows in (stored[key]["cases"][name], row))
    change = now / before - 1
    word = "slower" if change > options.tolerance else "faster" if change < -options.tolerance else "alike"
    sys.stdout.write(f"{key:18s} {name:40s} {before:6.3f} -> {now:6.3f}  {change:+.1%}  {word}\n")
    return word == "slower"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare ratios with the stored ones.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--problems", nargs="*", choices=PROBLEMS, help="default: all that are stored")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    return parser.parse_args()


if __name__ == "__main__":
    keep_memory("training.check")
    main()
