"""The benchmark of curvature: what flatmin and its peers cost, on one thread and on two.

Run it in the folder benchmarks/: ``python -m curvature.run --data FOLDER``; ``--only`` and ``--problems`` run a part
and leave the rest of the stored results as they are. See benchmarks/README.md for the environment it wants.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from curvature import machine
from curvature.case import Case
from curvature.measure import gradient_seconds, timed
from curvature.problems import PROBLEMS, Problem, problem
from curvature.reference import DENSE

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
STAGES = ("study", "peers", "flatmin", "memory", "shares")
TOLERANCE = 1e-3  # of eigenvalues
_REPEAT = {"digits-relu": 5, "digits-tanh": 5, "gpt2": 3, "resnet18": 2, "resnet20": 1}
_TIMED_PRODUCTS = {"digits-relu": 600, "digits-tanh": 600, "gpt2": 12, "resnet18": 6, "resnet20": 6}  # at most
# Not run where a run would take a quarter of an hour or more.
_TOO_LONG = {
    "resnet18": ("eigenthings eigenvalues power iteration", "flatmin trace hutchinson", "PyHessian trace default"),
    "resnet20": ("eigenthings eigenvalues power iteration", "flatmin trace hutchinson"),
}


def say(text: str) -> None:
    """Write a line about the progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Store:
    """The results of one problem, a file that is written after every run.

    Args:
        path: Its path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def put(self, value: Any, *keys: str) -> None:
        """Store a value under nested keys."""
        place = self.content
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def describe(p: Problem) -> dict[str, Any]:
    """Return what a problem is."""
    return {"title": p.title, "dimension": p.dimension, "examples": len(p.batch[0]), "loss": float(p.loss().detach())}


def efforts(case: Case, p: Problem, stored: dict[str, Any]) -> Iterable[Any]:
    """Return what to try: the number of products that takes the error to 2 %, or what the case names."""
    if not case.estimator:
        return case.efforts
    needed = stored["study"]["needed"][case.estimator]["products"]
    return (max(6, min(_TIMED_PRODUCTS[p.name], 6 * round(needed / 6))),)


def off(found: list[float], stored: dict[str, Any]) -> float:
    """Return the largest relative error of eigenvalues."""
    truth = stored["study"]["truth"]["eigenvalues"]
    if len(found) < len(truth):
        return float("inf")
    return max(abs(value / true - 1) for value, true in zip(found, truth, strict=True))


def time_cases(cases: list[Case], p: Problem, store: Store, options: argparse.Namespace, count: int) -> None:
    """Run all cases in turn, and again, on ``count`` threads."""
    lock, chosen = options.hold, {case.key: None for case in cases}
    runs: dict[str, list[dict[str, Any]]] = {case.key: [] for case in cases}
    for repetition in range(options.repeat or _REPEAT[p.name]):
        for case in cases:
            for effort in efforts(case, p, store.content) if repetition == 0 else (chosen[case.key],):
                try:
                    if repetition == 0 and p.dimension <= DENSE:  # once to warm up
                        timed(case, p, effort, repetition, lock)
                    run = timed(case, p, effort, repetition, lock)
                except Exception as error:  # noqa: BLE001  (a case that fails is a result)
                    say(f"{p.name} {case.key}: {error!r}")
                    runs[case.key].append({"effort": effort, "failed": repr(error)[:200]})
                    break
                runs[case.key].append(run)
                store.put(runs[case.key], "runs", str(count), case.key)
                cost = run["setup"] + run["run"]
                say(f"{p.name} x{count} {case.key} {effort}: {cost:.1f} G, {run['products']} products, {run['values']}")
                chosen[case.key] = effort
                if case.quantity != "eigenvalues" or off(run["values"], store.content) <= TOLERANCE:
                    break


def chosen_cases(options: argparse.Namespace, name: str) -> list[Case]:
    """Return the cases of the stages that were asked for."""
    cases: list[Case] = []
    if "peers" in options.only:
        from curvature.peers import PEERS  # noqa: PLC0415  (flatmin alone can be measured without them)

        cases += PEERS
    if "flatmin" in options.only:
        from curvature.ours import OURS  # noqa: PLC0415

        cases += OURS
    return [
        case
        for case in cases
        if case.key not in _TOO_LONG.get(name, ())
        and (not options.cases or any(part in case.key for part in options.cases))
    ]


def run_problem(name: str, options: argparse.Namespace) -> None:
    """Run the stages that were asked for on one problem."""
    store = Store(options.results / f"{name}.json")
    with options.hold:
        p = problem(name, options.data, options.cache)
    store.put(describe(p), "problem")
    if "study" in options.only:
        from curvature.study import study  # noqa: PLC0415

        store.put(study(p, options.cache, options.hold), "study")
    for count in options.threads:
        cases = chosen_cases(options, name)
        if cases:
            with machine.threads(count):
                gradient_seconds(p)
                time_cases(cases, p, store, options, count)
            store.put(machine.about(versions()), "about")
    for stage, measure in extra_stages(options).items():
        store.put(measure(p), stage)


def extra_stages(options: argparse.Namespace) -> dict[str, Callable[[Problem], Any]]:
    """Return the stages that are not timings, of those that were asked for."""
    stages: dict[str, Callable[[Problem], Any]] = {}
    if "memory" in options.only:
        from curvature.memory import memory  # noqa: PLC0415

        stages["memory"] = lambda p: memory(p, options)
    if "shares" in options.only:
        from curvature.shares import shares  # noqa: PLC0415

        stages["shares"] = lambda p: shares(p, options.hold)
    return stages


def versions() -> dict[str, str]:
    """Return the versions that no package metadata tell: the commits of sources."""
    return {name: value for name in ("PyHessian", "flatmin") if (value := os.environ.get(f"{name.upper()}_COMMIT"))}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment = os.environ.get("FLATMIN_DATA")
    parser.add_argument("--data", type=Path, default=Path(environment) if environment else None, help="images and text")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "flatmin-benchmark", help="trained here")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--cases", nargs="+", default=[], metavar="PART", help="of the names of cases")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeat", type=int, help="runs of each case")
    parser.add_argument("--lock", type=Path, help="a file to lock while computing, on a machine that is shared")
    options = parser.parse_args(arguments)
    options.hold = machine.Lock(options.lock)
    return options


def main() -> int:
    """Run."""
    options = parsed()
    warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
    torch.set_num_threads(1)
    for name in options.problems:
        run_problem(name, options)
        options.hold.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
