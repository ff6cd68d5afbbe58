"""What this machine and its Python are good for, and a remedy for whatever is not: ``flatmin doctor``.

It needs nothing but the standard library, imports nothing that might be broken into its own process, and reaches for
no network but the cluster that the environment names. Where even the command line cannot start: ``python -m
flatmin_lab.doctor``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flatmin_lab.doctor import clusters, data, machine, packages, torch_itself
from flatmin_lab.doctor.finding import Examination, Finding, Section, Status, problem

__all__ = ["Examination", "Finding", "Section", "Status", "examine"]


def examine(runs: Path = Path("runs"), data_root: Path | None = None) -> Examination:
    """Look at everything, several things at a time.

    Args:
        runs: The folder that runs are kept in; it is not made.
        data_root: The data root; what the environment names if None.

    Returns:
        What was found. A check that fails itself is a finding, too.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "Python": packages.check_python,
        "torch": torch_itself.check_torch,
        "Beside torch": packages.check_torchvision,
        "Packages": packages.check_extras,
        "Machine": machine.check_machine,
        "Runs": lambda: machine.check_folder(runs),
        "Data": lambda: data.check_data(data_root),
        "Clusters": clusters.check_clusters,
    }
    with ThreadPoolExecutor(len(checks)) as pool:  # they wait for other processes most of the time
        return Examination(tuple(pool.map(_section, checks, checks.values())))


def _section(subject: str, check: Callable[[], Iterable[Finding]]) -> Section:
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:  # noqa: BLE001 (whatever it met, the others still have something to say)
        found.append(
            problem(
                f"The examination itself failed here: {type(error).__name__}: {error}",
                "this machine is one that nobody has thought of.",
                "flatmin doctor --json > doctor.json, and send it with an issue.",
            )
        )
    return Section(subject, tuple(found))
