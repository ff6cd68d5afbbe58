"""Operators for SciPy's solvers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flatmin.curvature.operators.base import Operator


def as_scipy(operator: Operator) -> Any:
    """Return ``operator`` as a ``scipy.sparse.linalg.LinearOperator``; see :meth:`Operator.to_scipy`."""
    try:
        from scipy.sparse.linalg import LinearOperator  # noqa: PLC0415  (not among what the library needs)
    except ModuleNotFoundError as error:
        message = "scipy is not installed, and to_scipy() needs it. Install it: pip install 'flatmin[lab]'"
        raise ModuleNotFoundError(message, name="scipy") from error

    def products(array: NDArray[Any]) -> NDArray[Any]:
        vector = torch.from_numpy(np.ascontiguousarray(array)).to(operator.device, operator.dtype)
        return (operator @ vector).cpu().numpy()

    dtype = torch.empty(0, dtype=operator.dtype).numpy().dtype
    make: Any = LinearOperator  # a factory, which its types do not say
    return make(operator.shape, matvec=products, rmatvec=products, matmat=products, rmatmat=products, dtype=dtype)
