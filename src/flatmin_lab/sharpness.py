"""How sharp the training loss of a network is: trace, largest eigenvalue and perturbation gap, each with its error."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import flatmin as fm
from flatmin.curvature.legacy import authors_lambda

if TYPE_CHECKING:
    from torch import nn

    from flatmin_lab.data.splits import Batches
    from flatmin_lab.tasks import Task

_GAP_SAMPLES = 20


def curvature(model: nn.Module, on: Task, batches: Batches, *, seed: int) -> dict[str, float]:
    """Measure trace and largest eigenvalue of the Hessian of the training loss, on the labels trained with.

    Args:
        model: A trained network, in evaluation mode.
        on: What it was trained on: says with how many vectors, and of which layers the authors' number is wanted too.
        batches: The training examples to measure on.
        seed: Of the vectors.

    Returns:
        The curvature as fields of a ``RunResult``.
    """
    H, how = fm.Hessian(model, on.loss, batches), on.measuring
    trace = fm.trace(H, num_matvecs=how.num_matvecs, seed=seed)
    top = fm.top_eigenvalues(H, k=1, seed=seed)
    found = {
        "trace": float(trace.value),
        "trace_stderr": float(trace.stderr),
        "top_eigenvalue": float(top.values[0]),
        "top_eigenvalue_residual": float(top.residuals[0]),
    }
    if how.authors_layers:
        # The mean over batches, each with a maximum of its own, as the authors take it.
        each = (fm.Hessian(model, on.loss, [batch]) for batch in batches)
        found["authors_lambda"] = fmean(authors_lambda(h, layers=how.authors_layers, seed=seed).value for h in each)
    return found


def trace_and_gap(model: nn.Module, on: Task, batches: Batches, *, sigma: float, seed: int) -> dict[str, float]:
    """Measure trace and perturbation gap in the middle of training, leaving everything as found.

    Args:
        model: The network, in any mode; it is measured in evaluation mode.
        on: What it is trained on.
        batches: The training examples to measure on.
        sigma: Standard deviation of the gap's noise on each weight.
        seed: Of the vectors and the noise.

    Returns:
        Fields of a ``Point``.
    """
    H = fm.Hessian(model, on.loss, batches)
    trace = fm.trace(H, num_matvecs=on.measuring.num_matvecs, seed=seed)
    gap = fm.perturbation_gap(model, on.loss, batches, sigma=sigma, num_samples=_GAP_SAMPLES, seed=seed)
    return {
        "trace": float(trace.value),
        "trace_stderr": float(trace.stderr),
        "gap": float(gap.value),
        "gap_stderr": float(gap.stderr),
    }
