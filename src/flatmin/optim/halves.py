"""The two halves of a batch, one for each point of a pair: two-point noise at the price of the base optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from flatmin.errors import DataError


def halves(batch: Any) -> Iterator[Any]:
    r"""Yield the first and the second half of ``batch``.

    With one point of a pair on each half, the direction is
    :math:`\frac12[\nabla f_1(w + u) + \nabla f_2(w - u)]`: an unbiased estimate of the gradient of the smoothed loss at the
    price of one gradient, from which the first-order term of the noise cancels but for the difference of the halves.

    Args:
        batch: A tensor whose first dimension counts the examples, or tuples, lists and mappings of such; whatever is no
            tensor goes into both halves. An odd number of examples gives the first half one more.

    Yields:
        Two batches of the same form. Tensors are views.

    Raises:
        DataError: There is no tensor, tensors disagree in their number of examples, or there are fewer than 2.

    Example:
        >>> import torch, flatmin as fm
        >>> model, batch = torch.nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4, 1))
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.01)
        >>> for probe, (x, y) in zip(opt.probes(), fm.halves(batch)):
        ...     with probe:
        ...         (model(x) - y).square().mean().backward()
        >>> opt.step()
    """
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in _tensors(batch)}
    if len(sizes) != 1 or min(sizes) < 2:
        found = "no tensor" if not sizes else f"tensors of {', '.join(map(str, sorted(sizes)))} examples"
        raise DataError(
            f"The batch holds {found}, but its halves need tensors that all have the same number of examples, at least "
            "2, as their first dimension. Split it by hand, or evaluate all of it at each point."
        )
    middle = (min(sizes) + 1) // 2
    yield _map(lambda tensor: tensor[:middle], batch)
    yield _map(lambda tensor: tensor[middle:], batch)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (tuple, list, Mapping)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)


def _map(change: Callable[[Tensor], Tensor], batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _map(change, value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [_map(change, value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
