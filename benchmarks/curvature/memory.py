"""Peak memory, each case in a process of its own: what it takes beyond the model and its data."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from curvature.problems import Problem, problem


def memory(p: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Return the peak of each case in MiB above what was resident before it, and the size of one vector."""
    context = multiprocessing.get_context("spawn")
    peaks: dict[str, Any] = {"vector": p.dimension * 4 / 2**20}
    for name in _CASES:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(name, p.name, options.data, options.cache, sender))
        with options.hold:
            process.start()
            process.join()
        peaks[name] = receiver.recv() if receiver.poll() else None
    return peaks


def _child(case: str, name: str, data: Path | None, cache: Path, sender: Any) -> None:
    torch.set_num_threads(1)
    p = problem(name, data, cache)
    run = _CASES[case]
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run(p)
    sender.send(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _training_step(p: Problem) -> None:
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.0, momentum=0.9)
    p.model.train()
    p.loss().backward()
    optimizer.step()


def _trace(p: Problem, limit: int | None) -> None:
    from curvature.ours import RTOL, hessian  # noqa: PLC0415
    from flatmin.curvature import trace  # noqa: PLC0415

    trace(hessian(p, limit), rtol=RTOL)


def _eigenvalues(p: Problem, limit: int | None) -> None:
    from curvature.ours import K, hessian  # noqa: PLC0415
    from flatmin.curvature import top_eigenvalues  # noqa: PLC0415

    top_eigenvalues(hessian(p, limit), k=K)


def _product(p: Problem) -> None:
    from curvature.ours import hessian  # noqa: PLC0415

    hessian(p) @ torch.ones(p.dimension)


def _pyhessian(p: Problem) -> None:
    from curvature.peers import _pyhessian, _pyhessian_trace  # noqa: PLC0415

    _pyhessian_trace(_pyhessian(p), 2, 0)


def _curvlinops(p: Problem) -> None:
    from curvature.peers import XTRACE, _curvlinops, _curvlinops_trace  # noqa: PLC0415

    _curvlinops_trace(XTRACE, _curvlinops(p), 12, 0)


def _eigenthings(p: Problem) -> None:
    from curvature.peers import _eigenthings, _eigenthings_trace  # noqa: PLC0415

    _eigenthings_trace("hutch++", _eigenthings(p), 12, 0)


_CASES: dict[str, Callable[[Problem], None]] = {
    "a training step": _training_step,
    "flatmin: one product": _product,
    "flatmin: trace": lambda p: _trace(p, None),
    "flatmin: trace, memory=0": lambda p: _trace(p, 0),
    "flatmin: eigenvalues": lambda p: _eigenvalues(p, None),
    "flatmin: eigenvalues, memory=0": lambda p: _eigenvalues(p, 0),
    "PyHessian: two probes": _pyhessian,
    "curvlinops: XTrace, 12 products": _curvlinops,
    "eigenthings: Hutch++, 12 products": _eigenthings,
}
