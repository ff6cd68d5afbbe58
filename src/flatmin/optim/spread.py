"""The examples of a batch, dealt out over the points of a step: two-point noise at the price of the base optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from flatmin.errors import DataError, ProbeError
from flatmin.perturb import Probe


def spread(probes: Iterable[Probe], batch: Any) -> Iterator[tuple[Probe, Any]]:
    r"""Yield each probe of a step with its own part of ``batch``, which together are all of it.

    With one point of a pair on each half, the direction is
    :math:`\frac12[\nabla f_1(w + u) + \nabla f_2(w - u)]`: an unbiased estimate of the gradient of the smoothed loss at
    the price of one gradient, from which the first-order term of the noise cancels but for what the halves differ in. A
    step of one point (sigma = 0) takes the whole batch.

    Args:
        probes: ``opt.probes()`` of a method whose points are independent of gradients: :class:`NSO`, :class:`WPSGD`.
        batch: A tensor whose first dimension counts the examples, or tuples, lists and mappings of such; whatever is no
            tensor goes into every part. Where the number of points does not divide that of examples, the first parts
            have one more, and each example of them counts a little less.

    Yields:
        Probe and part; parts have the form of ``batch``, and their tensors are views.

    Raises:
        DataError: There is no tensor, tensors disagree in their number of examples, or there are fewer than points.
        ProbeError: The method compares gradients between its points, so that all of them need the same examples.

    Example:
        >>> import torch, flatmin as fm
        >>> model, batch = torch.nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4, 1))
        >>> opt = fm.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.01)
        >>> for probe, (x, y) in fm.spread(opt.probes(), batch):
        ...     with probe:
        ...         (model(x) - y).square().mean().backward()
        >>> opt.step()
    """
    num_examples = _num_examples(batch)
    for probe in probes:
        if probe.total is None:
            raise ProbeError(
                "A batch was to be spread over the points of a method that uses the gradient at one point to find the "
                "next, so all of them need the same examples. Evaluate the whole batch inside each probe, or spread "
                "over those of NSO or WPSGD."
            )
        if num_examples < probe.total:
            raise DataError(
                f"The batch has {num_examples} examples for {probe.total} points, but each point needs one. Take "
                "larger batches, or evaluate the whole batch at each point."
            )
        size, more = divmod(num_examples, probe.total)
        start = probe.number * size + min(probe.number, more)
        yield probe, _part(batch, slice(start, start + size + (probe.number < more)))


def _num_examples(batch: Any) -> int:
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in _tensors(batch)}
    if len(sizes) != 1:
        found = "no tensor" if not sizes else f"tensors of {', '.join(map(str, sorted(sizes)))} examples"
        raise DataError(
            f"The batch holds {found}, but to be spread over the points of a step its tensors must all have the same "
            "number of examples as their first dimension. Split it by hand, or evaluate all of it at each point."
        )
    return sizes.pop()


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (tuple, list, Mapping)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)


def _part(batch: Any, rows: slice) -> Any:
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, Mapping):
        return {key: _part(value, rows) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [_part(value, rows) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch
