"""Krylov spaces with full reorthogonalisation: the basis, and the operator restricted to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flatmin.curvature.basis import Basis, inner, norms
from flatmin.curvature.counted import Counted
from flatmin.errors import ArgumentError
from flatmin.noise import Gaussian
from flatmin.streams import Stream
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from flatmin.curvature.operators import LinearOperator

_STREAM = int.from_bytes(b"krylov")
_ASYMMETRY = 0.1  # above what products in bfloat16 show, below what a matrix that is not symmetric does


class Krylov:
    r"""An orthonormal basis V of span(V₀, A V₀, A² V₀, ...), grown block by block, with V₀ random or given.

    At any time :math:`A V = V T + Q C`: T is ``restricted``, Q the next block, orthonormal to V, and C ``coupling``. T
    is kept as computed and not as theory has it (symmetric, banded), so that what rounding or an operator that is not
    quite symmetric does to it shows up in residuals. Directions that A V adds below rounding error are dropped: where
    none is left, V spans an invariant space, the eigenvalues of T are eigenvalues of A, and :meth:`restart` goes on
    with a random vector from the complement. One vector alone (``width`` 1, the method of Lanczos) sees one copy of an
    eigenvalue that occurs several times; a block of n sees n.

    Memory: d numbers a product (float32, or float64 for operators of it), and two blocks more.

    Args:
        operator: A symmetric operator, or a :class:`Counted` one, whose account then goes on.
        width: Vectors in a random first block; later ones have at most as many.
        seed: Seed of the random vectors.
        start: The first block, (d, n), instead of a random one.
        avoid: Orthonormal vectors (d, n) to whose complement the operator is restricted: P A P takes the place of A,
            with P = I - ``avoid`` ``avoid``'.
        norm: A lower bound of the norm of A, where one is known: what ``avoid`` takes out may be all that A has, and
            what is left the rounding errors of its products.

    Attributes:
        counted: The operator, with its account.
        seed: Seed of the random vectors.
        restricted: T = V'AV, shape (m, m), on the CPU.
        coupling: C, shape (``num_next``, m).
        eps: Rounding unit of the type the basis is kept in.

    Example:
        >>> space = Krylov(torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])))
        >>> while space.num_next:
        ...     space.extend()
        >>> space.size
        3
        >>> z = torch.ones(4, 1)
        >>> _ = space.remove(z)
        >>> [round(abs(x), 5) for x in z[:2, 0].tolist()]
        [0.0, 0.0]
    """

    def __init__(
        self,
        operator: LinearOperator | Counted,
        *,
        width: int = 1,
        seed: int = 0,
        start: Tensor | None = None,
        avoid: Tensor | None = None,
        norm: float = 0.0,
    ) -> None:
        self.counted: Counted = operator if isinstance(operator, Counted) else Counted(operator)
        dtype = torch.promote_types(self.counted.dtype, torch.float32)
        self._wide = accumulation_dtype(self.counted.device)
        self.eps: float = torch.finfo(dtype).eps
        self._avoided = Basis(self.counted.d, dtype, self.counted.device)
        self._basis = Basis(self.counted.d, dtype, self.counted.device)
        if avoid is not None:
            self._avoided.append(avoid.T.to(self.counted.device, dtype).contiguous())
        self._chain = 0  # where the present chain of products begins
        self._largest = norm  # or the longest A v so far, a lower bound of the norm of A
        self.seed = seed
        self._stream, self._drawn = Stream(seed).child(_STREAM), 0
        self.restricted = torch.zeros(0, 0, dtype=self._wide)
        self._next, self.coupling = self._basis.combine(self.restricted), self.restricted
        self._begin(self._random(width) if start is None else start.T.to(self._next, copy=True).contiguous())
        self.extend()

    @property
    def size(self) -> int:
        """m, the dimension of the space and the number of products it took."""
        return len(self.restricted)

    @property
    def num_next(self) -> int:
        """Vectors in the next block; zero when the space is invariant."""
        return len(self._next)

    @property
    def latest(self) -> Tensor:
        """The part of T that belongs to the products since the last restart."""
        return self.restricted[self._chain :, self._chain :]

    @property
    def capacity(self) -> int:
        """The largest dimension it can grow to."""
        return self.counted.d - len(self._avoided)

    def extend(self) -> None:
        """Take the next block into the basis and multiply it by the operator.

        Raises:
            ArgumentError: The operator is not symmetric.
            NonFiniteError: A product is not finite.
        """
        block, old = self._next, self.size
        self._basis.append(block)
        image = self.counted.products(block.T).T.to(block.dtype, copy=True).contiguous()
        self._avoided.remove(image)
        self._largest = max(self._largest, float(norms(image).max()))
        coefficients = self._basis.remove(image)
        size = len(coefficients)
        restricted = torch.zeros(size, size, dtype=self._wide)
        restricted[:old, :old] = self.restricted
        restricted[old:, :old] = self.coupling
        restricted[:, old:] = coefficients
        self._check_symmetry(restricted)
        self.restricted: Tensor = restricted
        self._next, reached = self._orthonormalised(image, self._largest)
        self.coupling = torch.cat([torch.zeros(len(reached), old, dtype=self._wide), reached], dim=1)

    def restart(self, width: int = 1) -> None:
        """Where the space is invariant, take up random vectors from its complement, if it has one.

        Args:
            width: How many.
        """
        if not self.num_next and self.size < self.capacity:
            self._begin(self._random(min(width, self.capacity - self.size)))

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return V ``coefficients`` (m, n) as columns (d, n)."""
        return self._basis.combine(coefficients).T

    def remove(self, block: Tensor) -> Tensor:
        """Project the columns of ``block`` (d, n), in place, onto the complement of V (and of what is avoided).

        Args:
            block: In the type of the basis: float32, or float64 for operators of it. Fastest where columns are
                contiguous in memory, as in ``torch.empty(n, d).T``.

        Returns:
            The coefficients V'``block``, (m, n), on the CPU.
        """
        self._avoided.remove(block.T)
        return self._basis.remove(block.T)

    def _random(self, width: int) -> Tensor:
        rows = torch.empty(width, self.counted.d, dtype=self._basis.dtype, device=self._basis.device)
        for row in rows:
            Gaussian().sample_(row, self._stream.generator(self._drawn, row.device))
            self._drawn += 1
        return rows

    def _begin(self, rows: Tensor) -> None:
        """Make ``rows`` (n, d) the next block, which A V does not reach."""
        self._chain = self.size
        self.remove(rows.T)
        rows.div_(norms(rows).to(rows)[:, None])
        self._next, _ = self._orthonormalised(rows, 1.0)
        self.coupling: Tensor = torch.zeros(self.num_next, self.size, dtype=self._wide)

    def _orthonormalised(self, rows: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return an orthonormal basis Q of ``rows`` (n, d), which are orthogonal to V, and C with rows = C'Q.

        What is left of vectors of length ``scale`` within rounding errors is dropped.
        """
        found: list[Tensor] = []
        coupling = torch.zeros(len(rows), len(rows), dtype=self._wide)
        for j in range(len(rows)):
            row = rows[j : j + 1]
            for i, other in enumerate(found):
                coupling[i, j] = part = inner(other, row)
                row.sub_(other * part.to(row))
            length = float(norms(row))
            if length <= 10 * self.eps * scale:
                continue
            coupling[len(found), j] = length
            row.div_(length)
            if length < 1e-3 * scale:  # what is left of a long vector is long in rounding errors
                self.remove(row.T)
                for other in found:
                    row.sub_(other * inner(other, row).to(row))
                row.div_(norms(row).to(row))
            found.append(row)
        if len(found) < len(rows):
            rows = torch.cat(found) if found else rows[:0]
        return rows, coupling[: len(found)]

    def _check_symmetry(self, restricted: Tensor) -> None:
        if float((restricted - restricted.T).norm()) > _ASYMMETRY * max(float(restricted.norm()), self._largest):
            raise ArgumentError(
                "the operator is not symmetric: x'(Ay) and y'(Ax) differ by more than 10 %. Eigenvalues are found here "
                "for symmetric operators only. If it should be symmetric, its products are not reproducible (dropout?)."
            )
