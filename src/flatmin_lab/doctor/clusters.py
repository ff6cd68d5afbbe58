"""Clusters: whether Ray's head answers where it is said to be, and whether this machine can submit to Slurm."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec

from flatmin_lab.doctor.finding import Finding, note, ok, problem
from flatmin_lab.doctor.probe import ask, said

ADDRESS = "RAY_ADDRESS"
_NO_EXTRA = "flatmin was installed without it."
_PATIENCE = 5.0
_JOINING = 60.0


def check_clusters() -> Iterator[Finding]:
    """Examine Ray and Slurm."""
    yield from _ray()
    yield from _slurm()


def _ray() -> Iterator[Finding]:
    address = os.environ.get(ADDRESS, "")
    if not address:
        yield ok(f"{ADDRESS} is not set: --cluster ray would start a cluster of this machine alone.")
    elif address.startswith("ray://"):
        yield problem(
            f"{ADDRESS} is {address}, an address of Ray Client, through which results cannot be streamed.",
            "the command is run outside of the cluster.",
            "ray job submit -- flatmin compare --cluster ray",
        )
    elif (match := re.fullmatch(r"\[?([^\]]+?)\]?:(\d{1,5})", address)) and int(match[2]) < 2**16:
        refused = _refusal(match[1], int(match[2]))
        yield refused or _joined(address)
    elif address in ("auto", "local"):
        yield _joined(address)
    else:
        yield problem(
            f"{ADDRESS} is {address!r}, which is no address.", "a typing mistake.", f"export {ADDRESS}=HOST:6379"
        )


def _refusal(host: str, port: int) -> Finding | None:
    where = f"{ADDRESS} is {host}:{port}, and"
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except socket.gaierror:
        return problem(
            f"{where} no machine is called {host}.", "a typing mistake, or a VPN that is off.", f"ping {host}"
        )
    except TimeoutError:
        return problem(
            f"{where} nothing answered within {_PATIENCE:g} s.",
            "a firewall, or a machine that is off.",
            f"unset {ADDRESS}",
        )
    except OSError as error:
        return problem(
            f"{where} the connection failed: {error.strerror or error}.",
            "no Ray head runs there, or at another port.",
            f"ray start --head --port={port}",
        )
    return None


def _joined(address: str) -> Finding:
    if find_spec("ray") is None:
        return problem(
            f"{ADDRESS} is {address}, and Ray is not installed.", _NO_EXTRA, "pip install 'flatmin[cluster]'"
        )
    answer = ask("ray_cluster", address, seconds=_JOINING)
    facts = answer.lines[-1] if answer.lines else {"error": f"the process that joined it {answer.fault}"}
    if "error" in facts:
        return problem(
            f"{ADDRESS} is {address}, and the cluster cannot be joined: {facts['error']}",
            "it does not run, or with another version of Ray or of Python.",
            "ray status",
        )
    return ok(
        f"The Ray cluster at {address} has {facts['nodes']} nodes, {facts['cpus']:g} cores and {facts['gpus']:g} GPUs."
    )


def _slurm() -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield ok("There is no sbatch on this machine: --cluster slurm is for login nodes of Slurm.")
        return
    version, fault = said("sbatch", "--version", seconds=_PATIENCE)
    if fault:
        yield problem(f"sbatch {fault}.", "Slurm is installed, but not configured here.", "sbatch --version")
        return
    _, fault = said("scontrol", "ping", seconds=_PATIENCE)
    if fault:
        yield problem(
            f"{version} is here, but its controller does not answer: scontrol {fault}.",
            "this is no login node, or the controller is down.",
            "scontrol ping",
        )
    elif find_spec("submitit") is None:
        yield note(f"{version} answers, and submitit is not installed.", _NO_EXTRA, "pip install 'flatmin[cluster]'")
    else:
        yield ok(f"{version} answers.")
