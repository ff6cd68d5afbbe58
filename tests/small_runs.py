"""Runs and comparisons small enough for tests, and the real command line in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import flatmin_lab
from flatmin_lab.job import Job, execute
from flatmin_lab.methods import METHODS
from flatmin_lab.spec import RunSpec, Study

VALUES = {
    "sgd": None,
    "wpsgd": 0.05,
    "nso": 0.05,
    "sam": 0.2,
    "ls": 0.1,
    "usam": 0.2,
    "asam": 0.5,
    "rsam": 0.2,
    "bsam": 0.05,
    **dict.fromkeys((name for name in METHODS if name.startswith(("nso-", "wpsgd-"))), 0.05),
    "sgd-halves": None,
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flatmin_lab.__file__).parents[1]), "COLUMNS": "200"}


def run_spec(method="sgd", seed=0, task="digits-clean", budget=8, **changes):
    """One run; ``changes`` replace other fields."""
    return RunSpec(task=task, method=method, value=VALUES[method], seed=seed, budget=budget).model_copy(update=changes)


def asked(methods=("sgd", "sam"), tasks=("digits-clean",), seeds=1, budget=4):
    """One comparison."""
    return Study.crossed(tasks=tasks, methods=methods, seeds=seeds, budget=budget)


def outcome(spec, **wanted):
    """Do a job here and return what came of it."""
    return driven(execute(Job(spec, **wanted)))[1]


def driven(course):
    """Run a generator to its end: everything it yields, and what it returns."""
    points = []
    while True:
        try:
            points.append(next(course))
        except StopIteration as end:
            return points, end.value


def start(*arguments, **options):
    """Start ``flatmin`` with these arguments in a process of its own."""
    command = [sys.executable, "-m", "flatmin_lab", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return subprocess.Popen(command, **{**pipes, **options})


def finish(process, timeout=120):
    """Wait for a process: its exit status and what it wrote on standard output and standard error."""
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def without_seconds(comparison):
    """A comparison as data, but for the wall times."""
    data = comparison.model_dump(exclude={"results", "tuning"})
    runs = (*comparison.results, *comparison.tuning)
    return data, [result.model_dump(exclude={"seconds"}) for result in runs]
