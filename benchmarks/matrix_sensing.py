"""What a gradient of matrix sensing costs: as the authors' script forms it, and here; side by side in one run.

``OMP_NUM_THREADS=1 python benchmarks/matrix_sensing.py`` prints the ratios; ``--write`` stores them as
``benchmarks/matrix_sensing.json``. The authors' script weights its measurements with a diagonal matrix of 2,500 by
2,500 and takes the product with all of them; the twin here does the same in a line of its own. One thread for both.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flatmin
from flatmin import flows
from flatmin.problems import SensingTask, descent, sensing_task

JSON = Path(__file__).with_suffix(".json")
DIM, RANK, NUM = 100, 5, 2500


def twin(dtype: type[np.floating[Any]]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the gradient as the authors' script forms it, of the same draws."""
    source = np.random.RandomState(0)
    U = source.standard_normal((DIM, RANK))
    A = source.standard_normal((NUM, DIM, DIM))
    A = ((A + A.transpose(0, 2, 1)) / 2).astype(dtype)
    flat, targets = A.reshape(NUM, DIM * DIM), (A.reshape(NUM, -1) @ (U @ U.T).reshape(-1).astype(dtype))

    def gradient(W: np.ndarray) -> np.ndarray:
        residuals = flat @ (W @ W.T).reshape(-1) - targets
        weighted = np.diag(residuals) @ flat  # the diagonal matrix, whole
        return weighted.mean(0).reshape(DIM, DIM) @ W

    return gradient


def seconds_each(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def steps_of(task: SensingTask, method: Callable[..., Any], num_steps: int) -> float:
    """Return the seconds of a step of descent by a flow, everything included."""
    begin = time.perf_counter()
    for _ in descent(task.train, method, task.start, lr=0.0025, num_steps=num_steps):
        pass
    return (time.perf_counter() - begin) / num_steps


def compare(dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Time a gradient of each at one precision, in turns, and check that they are the same."""
    task = sensing_task(DIM, RANK, NUM, dtype=dtype)
    theirs, W = twin({torch.float32: np.float32, torch.float64: np.float64}[dtype]), task.start
    steps_of(task, flows.sgd, 3)
    found = {
        "authors_gradient_seconds": seconds_each(lambda: theirs(W.numpy()), repeats),
        "our_gradient_seconds": seconds_each(lambda: task.train.gradient(W), 10 * repeats),
        "our_step_seconds": steps_of(task, flows.sgd, 10 * repeats),
    }
    reference, ours = theirs(W.numpy()), task.train.gradient(W).numpy()
    return {
        **found,
        "ratio_of_gradients": found["authors_gradient_seconds"] / found["our_gradient_seconds"],
        "ratio_to_a_step": found["authors_gradient_seconds"] / found["our_step_seconds"],
        "relative_difference": float(np.linalg.norm(ours - reference) / np.linalg.norm(reference)),
    }


def main() -> int:
    """Time, print, and store if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of the authors' gradient, each seconds long")
    parser.add_argument("--write", action="store_true", help=f"store {JSON.name}")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "about": {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "flatmin": flatmin.__version__,
            "problem": f"d = {DIM}, rank {RANK}, {NUM} measurements",
        }
    }
    for dtype in (torch.float32, torch.float64):
        found[str(dtype).removeprefix("torch.")] = compare(dtype, given.repeats)
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if given.write:
        JSON.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
