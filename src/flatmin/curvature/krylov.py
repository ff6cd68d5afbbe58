"""Block Krylov spaces with full reorthogonalisation: the basis, and the operator restricted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flatmin.errors import ArgumentError, NonFiniteError
from flatmin.noise import Gaussian
from flatmin.streams import Stream
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from flatmin.curvature.operators import LinearOperator

_STREAM = int.from_bytes(b"krylov")
_CHUNK = 2**18  # coordinates converted to float64 at a time
_ASYMMETRY = 0.1  # above what products in bfloat16 show, below what a matrix that is not symmetric does


class Krylov:
    r"""An orthonormal basis V of span(V₀, A V₀, A² V₀, ...), grown block by block, with V₀ random.

    At any time :math:`A V = V T + Q C`: T is ``restricted``, Q the next block, orthonormal to V, and C ``coupling``. T
    is kept as computed and not as theory has it (symmetric, banded), so that what rounding or an operator that is not
    quite symmetric does to it shows up in residuals. Directions that A V adds below rounding error are dropped: where
    none is left, V spans an invariant space, and the eigenvalues of T are eigenvalues of A.

    Args:
        operator: A symmetric operator.
        d: Its dimension.
        width: Vectors in the first block; later ones have at most as many.
        seed: Seed of the first block.

    Attributes:
        restricted: T = V'AV, shape (m, m), on the CPU.
        coupling: C, shape (``num_next``, m).
        eps: Rounding unit of the type the basis is kept in.
    """

    def __init__(self, operator: LinearOperator, d: int, *, width: int, seed: int) -> None:
        self._operator = operator
        self._d = d
        self._dtype = torch.promote_types(operator.dtype, torch.float32)
        self._wide = accumulation_dtype(operator.device)
        self.eps = torch.finfo(self._dtype).eps
        self._basis: list[Tensor] = []  # blocks of rows
        self._largest = 0.0  # the longest A v so far, a lower bound of the norm of A
        self.restricted = torch.zeros(0, 0, dtype=self._wide)
        start = torch.empty(width, d, dtype=self._wide, device=operator.device)
        stream = Stream(seed).child(_STREAM)
        for j, row in enumerate(start):
            Gaussian().sample_(row, stream.generator(j, row.device))
        self._next, _ = self._orthonormalised(start)
        self.coupling = torch.zeros(self.num_next, 0, dtype=self._wide)
        self.extend()

    @property
    def size(self) -> int:
        """m, the dimension of the space and the number of products spent."""
        return len(self.restricted)

    @property
    def num_next(self) -> int:
        """Vectors in the next block; zero when the space is invariant."""
        return len(self._next)

    def extend(self) -> None:
        """Take the next block into the basis and multiply it by the operator."""
        block, old = self._next, self.size
        self._basis.append(block)
        image = (self._operator @ block.T.to(self._operator.dtype)).T.to(self._wide, copy=True)
        if not image.isfinite().all():
            raise NonFiniteError(
                "a product with the operator is not finite, so it has no eigenvalues to find. Look for NaN or infinity "
                "in the operator, or for an overflow of its type."
            )
        self._largest = max(self._largest, float(image.norm(dim=1).max()))
        coefficients = self._removed(image)
        size = len(coefficients)
        restricted = torch.zeros(size, size, dtype=self._wide)
        restricted[:old, :old] = self.restricted
        restricted[old:, :old] = self.coupling
        restricted[:, old:] = coefficients
        self._check_symmetry(restricted)
        self.restricted = restricted
        self._next, reached = self._orthonormalised(image)
        self.coupling = torch.cat([torch.zeros(len(reached), old, dtype=self._wide), reached], dim=1)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return V ``coefficients`` (m, n) as columns (d, n)."""
        columns = torch.zeros(coefficients.shape[1], self._d, dtype=self._wide, device=self._operator.device)
        for block, part in zip(self._basis, coefficients.split([len(b) for b in self._basis]), strict=True):
            _subtract(columns, block, -part.to(columns.device))
        return columns.T.to(self._dtype).contiguous()

    def _removed(self, rows: Tensor) -> Tensor:
        """Subtract from ``rows``, in place, what lies in the basis; return its coefficients (m, len(rows))."""
        total = torch.zeros(sum(map(len, self._basis)), len(rows), dtype=self._wide)
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            parts = [_dots(block, rows) for block in self._basis]
            for block, part in zip(self._basis, parts, strict=True):
                _subtract(rows, block, part)
            total += torch.cat(parts).cpu() if parts else 0.0
        return total

    def _orthonormalised(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return an orthonormal basis Q of ``rows`` (n, d), which are orthogonal to V, and C with rows = C'Q."""
        found: list[Tensor] = []
        coupling = torch.zeros(len(rows), len(rows), dtype=self._wide)
        for j, row in enumerate(rows):
            for i, other in enumerate(found):
                coupling[i, j] = part = other @ row
                row.sub_(other * part)
            length = row.norm()
            if float(length) <= 10 * self.eps * self._largest:
                continue
            coupling[len(found), j] = length
            row.div_(length)
            if float(length) < 1e-3 * self._largest:  # what is left of a long vector is long in rounding errors
                self._removed(row.unsqueeze(0))
                for other in found:
                    row.sub_(other * (other @ row))
            found.append(row.div_(row.norm()))
        block = torch.stack(found).to(self._dtype) if found else rows.new_zeros(0, self._d, dtype=self._dtype)
        return block, coupling[: len(found)]

    def _check_symmetry(self, restricted: Tensor) -> None:
        if float((restricted - restricted.T).norm()) > _ASYMMETRY * float(restricted.norm()):
            raise ArgumentError(
                "the operator is not symmetric: x'(Ay) and y'(Ax) differ by more than 10 %. Eigenvalues are found here "
                "for symmetric operators only. If it should be symmetric, its products are not reproducible (dropout?)."
            )


def _chunks(d: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, d, _CHUNK))


def _dots(block: Tensor, rows: Tensor) -> Tensor:
    """Return the inner products of two sets of rows, in the type of ``rows``."""
    total = torch.zeros(len(block), len(rows), dtype=rows.dtype, device=rows.device)
    for part in _chunks(rows.shape[1]):
        total += block[:, part].to(rows.dtype) @ rows[:, part].T
    return total


def _subtract(rows: Tensor, block: Tensor, coefficients: Tensor) -> None:
    """Subtract ``coefficients`` transposed times ``block`` from ``rows``, in place."""
    for part in _chunks(rows.shape[1]):
        rows[:, part].sub_(coefficients.T @ block[:, part].to(rows.dtype))
