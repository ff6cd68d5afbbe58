"""The matrix as a table in the terminal, as JSON and as a page."""

from __future__ import annotations

import datetime as dt
import importlib.util
import math
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

from peers.adapters import PEERS, Peer
from peers.notes import note
from peers.outcome import Outcome, Status
from peers.registry import Loop, rows

Results = Mapping[str, Mapping[str, Outcome]]  # loop key -> peer name -> outcome

SYMBOLS = {Status.OK: "✓", Status.WRONG: "✗", Status.RAISES: "!", Status.NOT_APPLICABLE: "·"}
LEGEND = "✓ holds · ✗ does not hold · ! raises · a dot: nothing to ask"
COLOURS = {Status.OK: "green", Status.WRONG: "red", Status.RAISES: "magenta", Status.NOT_APPLICABLE: "dim"}
RERUN = "python benchmarks/peers_matrix.py --write"

INTRODUCTION = """\
# Peers: the loop matrix

Every training loop below is run with every flat-minima optimizer below, and an exact property is checked. All cells,
also those of flatmin, come from one script, which calls the packages as they are installed.

Read it with care. The rows are properties that flatmin was designed for, so its own columns are no surprise. The peers
have methods and years of use that flatmin does not have; a property that a peer never promised may be missing here;
some rows are advised against by torch itself. Where a failure could be our misuse we read the source and give the
reason. Corrections are welcome.
"""
FOUND = """\
## What was found

Numbers are the largest difference of any weight (or buffer) from what the row asks for. Weights are of the order of
0.3, the learning rate is 0.1 (AdamW: 0.01), radii are 0.05.
"""


def environment(peers: Mapping[str, str]) -> dict[str, str]:
    """Return what the numbers belong to: date, versions and hardware."""
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **peers,
        "hardware": f"{os.cpu_count()} {platform.machine().replace('_', '-')} cores, one thread a process",
    }


def as_json(peers: list[Peer], results: Results, about: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that was found, for a file."""
    loops = {}
    for row in _rows(results):
        cells = {}
        for peer in peers:
            outcome = results[row.key][peer.name]
            error = outcome.error if outcome.error is None or math.isfinite(outcome.error) else "inf"
            cells[peer.name] = {"status": outcome.status.value, "error": error, "detail": outcome.detail}
        loops[row.key] = {"group": row.group, "claim": row.claim, "tolerance": row.tolerance, "cells": cells}
    return {"about": dict(about), "loops": loops}


def from_json(stored: Mapping[str, Any]) -> tuple[list[Peer], dict[str, dict[str, Outcome]], dict[str, str]]:
    """Return what :func:`as_json` was given."""
    results = {
        key: {
            name: Outcome(
                Status(cell["status"]), None if cell["error"] is None else float(cell["error"]), cell["detail"]
            )
            for name, cell in loop["cells"].items()
        }
        for key, loop in stored["loops"].items()
    }
    seen = {name for cells in results.values() for name in cells}
    return [peer for peer in PEERS if peer.name in seen], results, stored["about"]


def as_text(peers: list[Peer], results: Results) -> None:
    """Print the table, with rich where it is installed."""
    if importlib.util.find_spec("rich") is None:
        width = max(len(row.title) for row in rows())
        sys.stdout.write(" " * width + " " + " ".join(peer.name for peer in peers) + "\n")
        for row in _rows(results):
            cells = (SYMBOLS[results[row.key][peer.name].status].center(len(peer.name)) for peer in peers)
            sys.stdout.write(f"{row.title:{width}} {' '.join(cells)}\n")
        sys.stdout.write(LEGEND + "\n")
        return
    from rich import box  # noqa: PLC0415  (optional)
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption=LEGEND)
    table.add_column("")
    for peer in peers:
        table.add_column(peer.name, justify="center")
    group = ""
    for row in _rows(results):
        if row.group != group:
            group = row.group
            table.add_row(f"[bold]{group}[/]")
        marks = (results[row.key][peer.name].status for peer in peers)
        table.add_row(row.title.replace("[", r"\["), *(f"[{COLOURS[mark]}]{SYMBOLS[mark]}[/]" for mark in marks))
    Console(width=max(Console().width, 140)).print(table)


def as_page(peers: list[Peer], results: Results, about: Mapping[str, str]) -> str:
    """Return the page in Markdown."""
    parts = [INTRODUCTION, _versions(about), _table(peers, results), _driven(peers), _findings(peers, results, about)]
    return "\n".join(parts)


def _versions(about: Mapping[str, str]) -> str:
    names = ("date", "hardware")
    versions = ", ".join(f"{name} {version}" for name, version in about.items() if name not in names)
    measured = f"Measured on {about['date']} with {versions}; {about['hardware']}."
    return f"{measured}\n\nAgain: `{RERUN}`, in [an environment of its own](../benchmarks/README.md).\n"


def _table(peers: list[Peer], results: Results) -> str:
    lines = [f"| | {' | '.join(peer.name for peer in peers)} |", "| --- |" + " :-: |" * len(peers)]
    group = ""
    for row in _rows(results):
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** |" + " |" * len(peers))
        marks = (SYMBOLS[results[row.key][peer.name].status] for peer in peers)
        lines.append(f"| {row.title} | {' | '.join(marks)} |")
    return "\n".join(lines) + f"\n\n{LEGEND}. SGD is torch's own, as a control of the loops.\n"


def _driven(peers: list[Peer]) -> str:
    by_way: dict[tuple[str, str], list[str]] = {}
    for peer in peers:
        by_way.setdefault((peer.distribution, peer.driven), []).append(peer.name)
    lines = [f"- {', '.join(names)} ({package}): {way}" for (package, way), names in by_way.items()]
    return "\n".join(["## How each is driven", "", *lines, ""])


def _findings(peers: list[Peer], results: Results, about: Mapping[str, str]) -> str:
    lines = [FOUND]
    for row in _rows(results):
        lines.append(f"**{row.title}**: {row.claim}{_tolerance(row)}.")
        lines.extend(_cells(row, peers, results[row.key], about))
        lines.append("")
    return "\n".join(lines)


def _tolerance(row: Loop) -> str:
    if row.tolerance is None:
        return ""
    return " (bit for bit)" if row.tolerance == 0 else f" (to {row.tolerance:.0e})"


def _cells(row: Loop, peers: list[Peer], cells: Mapping[str, Outcome], about: Mapping[str, str]) -> list[str]:
    """One line for each way of not holding, with the peers it is true of."""
    lines: dict[tuple[Status, str], list[Peer]] = {}
    for peer in peers:
        outcome = cells[peer.name]
        if outcome.status is Status.NOT_APPLICABLE:
            lines.setdefault((outcome.status, outcome.detail), []).append(peer)
        elif outcome.status is not Status.OK:
            reason = note(row.key, peer, about.get(peer.distribution, ""))
            lines.setdefault((outcome.status, reason), []).append(peer)
    return ["", *(_line(status, reason, found, cells) for (status, reason), found in lines.items())] if lines else []


def _line(status: Status, reason: str, peers: list[Peer], cells: Mapping[str, Outcome]) -> str:
    """Say who, how far off, what was seen and why; what several have in common is said once."""
    if status is Status.NOT_APPLICABLE:
        return f"- {SYMBOLS[status]} {', '.join(peer.name for peer in peers)}: {reason}."
    details = list(dict.fromkeys(cells[peer.name].detail for peer in peers))
    common = details[0] if len(details) == 1 or status is Status.RAISES else ""
    names = []
    for peer in peers:
        outcome = cells[peer.name]
        seen = outcome.amount if common else str(outcome)
        names.append(f"{peer.name} ({seen})" if seen else peer.name)
    if status is Status.RAISES:
        common = f"`{common.rstrip('.')}`" + (" and the like" if len(details) > 1 else "")
    text = ". ".join(part for part in (common, reason) if part)
    return f"- {SYMBOLS[status]} {', '.join(names)}" + (f": {text}" if text else "")


def _rows(results: Results) -> list[Loop]:
    return [row for row in rows() if row.key in results]
