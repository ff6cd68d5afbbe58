"""The task of the authors' script: matrix sensing from the draws of numpy's legacy generator.

Zhang, Li, Ju. *Noise Stability Optimization for Finding Flat Minima*. arXiv:2306.08553, section 5 and Figure 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatmin.checks import whole
from flatmin.errors import ArgumentError
from flatmin.problems.matrix_sensing import Convention, MatrixSensing

_DRAWN = 250  # measurements that are drawn at a time


@dataclass(frozen=True)
class SensingTask:
    """Matrix sensing as the authors' code sets it up.

    Attributes:
        train: The problem.
        validation: The same with fresh measurements.
        start: W₀, of shape (d, d).
    """

    train: MatrixSensing
    validation: MatrixSensing
    start: Tensor


def sensing_task(
    dim: int = 100,
    rank: int = 5,
    num_measurements: int | None = None,
    *,
    seed: int = 0,
    convention: Convention = "code",
    dtype: torch.dtype = torch.float32,
) -> SensingTask:
    """Draw a task: U⋆, A, fresh measurements for validation, and W₀, in this order, all of standard normal numbers.

    The numbers are those of the authors' script: it seeds numpy's legacy generator, and here is a generator of the same
    stream that is nobody else's.

    Args:
        dim: d.
        rank: Of U⋆.
        num_measurements: n, and as many for validation; 5 d rank if not given.
        seed: Of all draws, below 2³², as the script's generator takes no more.
        convention: As in :class:`MatrixSensing`.
        dtype: Of the problem; the draws are made in double precision.

    Returns:
        The task.

    Raises:
        ArgumentError: A number is below 1, the rank above d, or the seed out of range.

    Example:
        >>> task = sensing_task(dim=4, rank=2, dtype=torch.float64)
        >>> task.train.num_measurements, bool(task.train.value(task.train.minima) < 1e-20)
        (40, True)
    """
    d = whole("dim", dim, minimum=1, hint="It is the number of rows of W.")
    r = whole("rank", rank, minimum=1, hint="It is the number of columns of the solution's factor.")
    if r > d:
        raise ArgumentError(f"rank is {r}, above dim, {d}; WWᵀ has no such rank. Choose rank between 1 and {d}.")
    default = 5 * d * r
    n = default if num_measurements is None else whole("num_measurements", num_measurements, minimum=1, hint="It is n.")
    if whole("seed", seed, minimum=0, hint="It is the seed of all draws.") >= 2**32:
        raise ArgumentError(
            f"seed is {seed}, but numpy's legacy generator takes seeds below 2³². Choose a smaller one."
        )
    source = np.random.RandomState(seed)  # the stream of the authors' script
    factor = torch.from_numpy(source.standard_normal((d, r))).to(dtype)

    def problem() -> MatrixSensing:
        return MatrixSensing(factor, _measurements(source, n, d), convention=convention)

    return SensingTask(problem(), problem(), torch.from_numpy(source.standard_normal((d, d))).to(dtype))


def _measurements(source: np.random.RandomState, n: int, d: int) -> Iterator[Tensor]:
    for first in range(0, n, _DRAWN):
        yield torch.from_numpy(source.standard_normal((min(_DRAWN, n - first), d, d)))
