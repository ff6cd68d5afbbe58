"""Where flatmin's time goes: products, orthogonalisation, Python."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from curvature.ours import RTOL, K, hessian
from curvature.problems import Problem
from flatmin.curvature import top_eigenvalues, trace

_ORTHOGONALISATION = ("curvature/basis.py", "curvature/krylov.py")


def shares(p: Problem, lock: AbstractContextManager) -> dict[str, Any]:
    """Return the shares of the time of a trace and of eigenvalues, as profiled, and the seconds without a profiler."""
    runs: dict[str, Callable[[], Any]] = {
        "trace": lambda: trace(hessian(p), rtol=RTOL),
        "eigenvalues": lambda: top_eigenvalues(hessian(p), k=K),
    }
    found: dict[str, Any] = {}
    for name, run in runs.items():
        with lock:
            run()
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            profile = cProfile.Profile()
            profile.runcall(run)
        found[name] = {"seconds": seconds, **_classified(pstats.Stats(profile))}
    return found


def _classified(stats: pstats.Stats) -> dict[str, float]:
    """Return shares of the time: Python's own, that in vectors of the basis, and torch's for the rest.

    Python is what functions written in it took themselves, as far as the profiler can tell, which counts every call's
    overhead there. Vectors: what the files of the basis spent outside products. Torch: the rest.
    """
    entries: dict[Any, Any] = vars(stats)["stats"]
    total: float = vars(stats)["total_tt"]
    python = sum(own for (file, _, _), (_, _, own, _, _) in entries.items() if file != "~")
    vectors = 0.0
    for (file, _, _), (_, _, own, _, callers) in entries.items():
        if _basis(file):
            vectors += own
        elif file == "~":  # a function of torch: the part that the basis's files called
            vectors += sum(times[2] for (caller, _, _), times in callers.items() if _basis(caller))
    inside = sum(own for (file, _, _), (_, _, own, _, _) in entries.items() if _basis(file))
    return {
        "products": (total - python - vectors + inside) / total,
        "orthogonalisation": (vectors - inside) / total,
        "python": python / total,
    }


def _basis(file: str) -> bool:
    return file.replace("\\", "/").endswith(_ORTHOGONALISATION)
