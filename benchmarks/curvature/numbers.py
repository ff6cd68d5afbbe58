"""What stored runs say: costs to a target, errors, ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

TARGET = 0.02
ESTIMATORS = {"hutchinson": "hutchinson", "hutch++": "hutch++", "xtrace": "xtrace"}
TOOLS = ("PyHessian", "curvlinops", "eigenthings", "flatmin")

Stored = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A way of measuring, and what it costs.

    Attributes:
        tool: The package.
        method: Its name there.
        products: Products to the target; for flatmin those it took.
        cost: In gradients of the data.
        seconds: The same in seconds, at the speed of the gradient when it was timed.
        error: Relative; for the peers' traces the target itself.
        note: What there is to say.
    """

    tool: str
    method: str
    products: float
    cost: float
    seconds: float
    error: float
    note: str = ""


def runs_of(stored: Stored, threads: int) -> dict[tuple[str, str, str], list[Stored]]:
    """Return the runs that did not fail, by tool, quantity and method."""
    found = {}
    for key, runs in stored.get("runs", {}).get(str(threads), {}).items():
        good = [run for run in runs if "failed" not in run]
        if good:
            tool, quantity, method = key.split(" ", 2)
            found[tool, quantity, method] = good
    return found


def gradient(stored: Stored, threads: int) -> float:
    """Return the seconds of a gradient, the median of all timings."""
    return median(run["gradient"] for runs in runs_of(stored, threads).values() for run in runs)


def trace_rows(stored: Stored, threads: int) -> list[Row]:
    """Return what a trace to 2 % costs, or an exact one."""
    rows = []
    one = gradient(stored, threads)
    truth = stored["study"]["truth"]["trace"]
    for (tool, quantity, method), runs in runs_of(stored, threads).items():
        if quantity != "trace" or method == "default":
            continue
        if tool != "flatmin":
            needed = stored["study"]["needed"][ESTIMATORS[method]]
            cost = median(run["setup"] + run["run"] / run["products"] * needed["products"] for run in runs)
            note = "" if needed["how"].startswith("variance") else needed["how"]
            rows.append(Row(tool, method, needed["products"], cost, cost * one, TARGET, note))
        else:
            cost = median(run["setup"] + run["run"] for run in runs)
            error = math.sqrt(sum((run["values"][0] / truth - 1) ** 2 for run in runs) / len(runs))
            rows.append(
                Row(tool, method, median(r["products"] for r in runs), cost, cost * one, error, runs[0]["note"])
            )
    return _sorted(rows)


def eigenvalue_rows(stored: Stored, threads: int, quantity: str = "eigenvalues") -> list[Row]:
    """Return what five eigenvalues cost, to 1e-3 or by what was tried."""
    rows = []
    one = gradient(stored, threads)
    for (tool, kind, method), runs in runs_of(stored, threads).items():
        if kind != quantity:
            continue
        last = [run for run in runs if run["effort"] == runs[-1]["effort"]]
        cost = median(run["setup"] + run["run"] for run in last)
        skip = 1 if quantity == "both" else 0
        error = max(eigenvalue_error(run["values"][skip:], stored) for run in last)
        rows.append(
            Row(tool, method, median(run["products"] for run in last), cost, cost * one, error, last[0]["note"])
        )
    return _sorted(rows)


def eigenvalue_error(found: list[float], stored: Stored) -> float:
    """Return the largest relative error of five eigenvalues; infinite where there are not as many."""
    truth = stored["study"]["truth"]["eigenvalues"]
    if len(found) < len(truth):
        return math.inf
    return max(abs(value / true - 1) for value, true in zip(found, truth, strict=False))


def ratios(rows: list[Row], ours: str) -> dict[str, float]:
    """Return by how much PyHessian's and the cheapest peer's way cost more than flatmin's."""
    mine = next((row for row in rows if row.tool == "flatmin" and row.method == ours), None)
    peers = [row for row in rows if row.tool != "flatmin"]
    if mine is None or not peers:
        return {}
    pyhessian = [row.cost for row in peers if row.tool == "PyHessian"]
    return {
        "PyHessian": min(pyhessian) / mine.cost if pyhessian else math.nan,
        "cheapest": min(row.cost for row in peers) / mine.cost,
    }


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (TOOLS.index(row.tool), row.cost))
