"""The loop matrix: every training loop with every flat-minima optimizer that is installed.

``python benchmarks/peers_matrix.py`` prints the table; ``--write`` stores ``benchmarks/peers_matrix.json`` and makes
``docs/peers.md`` anew. See benchmarks/README.md for the environment it wants.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from peers import exact, parameters, ranks, state, training
from peers.adapters import INSTALL, PEERS, Peer
from peers.outcome import Outcome, Status, attempt
from peers.registry import rows
from peers.report import as_json, as_page, as_text, environment, from_json

ROWS = (exact, training, state, parameters, ranks)  # importing them enters their loops
HERE = Path(__file__).resolve().parent
JSON, PAGE = HERE / "peers_matrix.json", HERE.parent / "docs" / "peers.md"


def say(text: str) -> None:
    """Write a line about the progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def installed(names: list[str]) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers that can be imported, with the versions of their packages; tell how to get the others."""
    peers, versions, missing = [], {}, []
    for peer in PEERS:
        if names and peer.name not in names:
            continue
        version = peer.version()
        if version is None:
            missing.append(peer.distribution)
            continue
        peers.append(peer)
        if peer.distribution != "torch":
            versions[peer.distribution] = version
    for distribution in dict.fromkeys(missing):
        say(f"{distribution} is not installed and is left out: {INSTALL.get(distribution, 'pip install flatmin')}")
    return peers, versions


def run(peers: list[Peer], keys: list[str]) -> dict[str, dict[str, Outcome]]:
    """Run every loop with every peer."""
    results: dict[str, dict[str, Outcome]] = {}
    for peer in peers:
        for row in rows():
            if keys and row.key not in keys:
                continue
            torch.manual_seed(0)
            outcome = attempt(lambda row=row, peer=peer: row.check(peer))
            results.setdefault(row.key, {})[peer.name] = outcome
            if outcome.status in {Status.WRONG, Status.RAISES}:
                say(f"{peer.name:12} {row.title:30} {outcome.status}: {outcome}")
    return results


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the JSON file and the page")
    parser.add_argument("--page", action="store_true", help="make the page anew from the JSON file; run nothing")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME", help=", ".join(peer.name for peer in PEERS))
    parser.add_argument("--loops", nargs="+", default=[], metavar="KEY", help=", ".join(row.key for row in rows()))
    options = parser.parse_args()
    for given, known in ((options.peers, {p.name for p in PEERS}), (options.loops, {row.key for row in rows()})):
        if unknown := sorted(set(given) - known):
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if options.page:
        PAGE.write_text(as_page(*from_json(json.loads(JSON.read_text()))))
        return 0
    torch.set_num_threads(1)
    peers, versions = installed(options.peers)
    about = environment(versions)
    if options.write and (len(peers) < len(PEERS) or options.loops):
        parser.error("--write stores the whole matrix, so it needs every peer installed, and no --peers or --loops")
    sys.stdout.write("; ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    sys.stdout.flush()
    results = run(peers, options.loops)
    as_text(peers, results)
    if options.write:
        JSON.write_text(json.dumps(as_json(peers, results, about), indent=1, ensure_ascii=False) + "\n")
        PAGE.write_text(as_page(peers, results, about))
        say(f"wrote {JSON} and {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
