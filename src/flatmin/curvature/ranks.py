"""Operators over several ranks: the data split among them, or the vectors.

Both are operators, so that every estimator works over ranks as it is. All ranks must make the same calls with the same
vectors, which they do where estimators get the same seed and arguments.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatmin.curvature.operators.base import Operator
from flatmin.curvature.operators.risk_operator import RiskOperator
from flatmin.distributed import sum_over_ranks
from flatmin.errors import ArgumentTypeError, RankError
from flatmin.vectors import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import ProcessGroup

    from flatmin.curvature.layout import Layout

_ALIKE = 1e-3  # vectors of ranks differ by rounding at most; other seeds make other vectors altogether


class _OverRanks(Operator):
    """An operator that several ranks compute together."""

    def __init__(self, operator: Operator, group: ProcessGroup | None = None) -> None:
        if not isinstance(operator, Operator):
            raise ArgumentTypeError(
                f"the operator is a {type(operator).__name__}, but one made of a model is needed, such as "
                "Hessian(model, loss_fn, batches)."
            )
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RankError(
                "there are no ranks: torch.distributed is not initialised in this process. Call "
                "torch.distributed.init_process_group() first and start it by torchrun, or measure with the operator "
                "itself."
            )
        self._operator = operator
        self._group: Any = torch.distributed.group.WORLD if group is None else group
        self._world = torch.distributed.get_world_size(self._group)
        self.layout: Layout = operator.layout
        self.shape: tuple[int, int] = operator.shape
        self.dtype: torch.dtype = operator.dtype
        self.device: torch.device = operator.device
        self.multiplies: bool = operator.multiplies

    @property
    def parts(self) -> tuple[Operator, ...]:
        """The operators of this rank that really compute."""
        return self._operator.parts

    def __repr__(self) -> str:
        """Show what is computed, and by how many."""
        return f"{type(self).__name__}({self._operator!r}, {self._world} ranks)"

    def quadratic_forms(self, block: Tensor) -> Tensor:
        """Return x'Ax for every column x of ``block`` (d, m), shape (m,), in float64, the same on all ranks."""
        self._check(block)
        self._check_alike(block)
        columns = block.reshape(self.shape[0], -1)
        forms = columns.new_zeros(columns.shape[1], dtype=accumulation_dtype(columns.device))
        return self._together(self._operator.quadratic_forms, columns, forms).reshape(block.shape[1:])

    def _multiply(self, columns: Tensor) -> Tensor:
        self._check_alike(columns)
        return self._together(self._operator.__matmul__, columns, torch.zeros_like(columns))

    @abstractmethod
    def _together(self, apply: Callable[[Tensor], Tensor], columns: Tensor, zeros: Tensor) -> Tensor:
        """Return what the ranks make of ``columns`` (d, m) together, an answer like ``zeros``, (..., m)."""

    def _check_alike(self, columns: Tensor) -> None:
        """Raise RankError if the ranks have different vectors, by one number of each."""
        ramp = torch.linspace(1.0, 2.0, columns.numel(), dtype=torch.float64)
        mark = float(columns.detach().reshape(-1).to("cpu", torch.float64) @ ramp)
        count, mean, square = self._sum(lambda: torch.tensor([1.0, mark, mark**2], dtype=torch.float64)).tolist()
        size = float(columns.norm()) ** 2
        if square / count - (mean / count) ** 2 > _ALIKE * max(size, 1e-300):
            raise RankError(
                f"the {count:.0f} ranks multiply the {type(self).__name__} by different vectors. Give the estimator "
                "the same seed and the same arguments on all of them."
            )

    def _sum(self, compute: Callable[[], Tensor]) -> Tensor:
        return sum_over_ranks(compute, [self._group])


class DataOverRanks(_OverRanks):
    r"""The mean over the data of all ranks, each of which holds batches of its own.

    .. math:: A = \frac{\sum_r N_r A_r}{\sum_r N_r}

    with N_r examples and the operator A_r on rank r: the same numbers as one process with all the data, up to the order
    of sums. Under ``DistributedDataParallel``: ``DataOverRanks(Hessian(ddp_model, loss_fn, loader))``. A sampler that
    fills up the last round, as ``DistributedSampler`` does, counts some examples twice.

    Products cost an all-reduce of the block. ``gradients`` counts those of this rank's data.

    Args:
        operator: The operator on the data of this rank: Hessian, GGN, and so on, or what is made of them.
        group: The ranks; all by default.

    Raises:
        ArgumentTypeError: ``operator`` is none on a model and data.
        RankError: torch.distributed is not initialised; or, on multiplying, another rank failed or has other vectors.
    """

    def __init__(self, operator: Operator, group: ProcessGroup | None = None) -> None:
        super().__init__(operator, group)
        risks = {id(part.risk): part.risk for part in self.parts if isinstance(part, RiskOperator)}
        if len(risks) != 1:
            raise ArgumentTypeError(
                f"the operator is made of {len(risks)} sets of data, but the mean over ranks is one over examples, and "
                "so of one set. Split the parts over ranks and then add them, or make one of the other: "
                "H.related(GGN)."
            )
        (self._risk,) = risks.values()

    @property
    def route(self) -> str:
        """How products are computed."""
        return f"{self._operator.route}, data over {self._world} ranks"

    def _together(self, apply: Callable[[Tensor], Tensor], columns: Tensor, zeros: Tensor) -> Tensor:
        total = self._sum(lambda: zeros.add_(apply(columns)).mul_(self._risk.num_examples or 0))
        return total / self._sum(lambda: torch.tensor(float(self._risk.num_examples or 0))).item()


class VectorsOverRanks(_OverRanks):
    """The same operator on every rank, of whose vectors each rank multiplies its share: probes split over ranks.

    All ranks hold all the data. Of a block of m vectors each rank multiplies about m over the number of ranks, and gets
    the others' products. Worth it for estimators with blocks (traces, diagonals, block Lanczos; a larger ``block_size``
    helps); a single vector is left to one rank. ``gradients`` counts what this rank spent.

    Args:
        operator: The operator.
        group: The ranks; all by default.

    Raises:
        ArgumentTypeError: ``operator`` is none on a model and data.
        RankError: torch.distributed is not initialised; or, on multiplying, another rank failed or has other vectors.
    """

    def __init__(self, operator: Operator, group: ProcessGroup | None = None) -> None:
        super().__init__(operator, group)
        if any(isinstance(part, RiskOperator) and part.risk.groups for part in self.parts):
            raise ArgumentTypeError(
                "the model is sharded, so that all ranks must evaluate it together, at the same vectors. Leave "
                "VectorsOverRanks out: operators on sharded models take the mean over ranks themselves."
            )

    @property
    def route(self) -> str:
        """How products are computed."""
        return f"{self._operator.route}, vectors over {self._world} ranks"

    def _together(self, apply: Callable[[Tensor], Tensor], columns: Tensor, zeros: Tensor) -> Tensor:
        share = slice(torch.distributed.get_rank(self._group), None, self._world)

        def mine() -> Tensor:
            block = columns[:, share]
            if block.shape[1]:
                zeros[..., share] = apply(block)
            return zeros

        return self._sum(mine)
